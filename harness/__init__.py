"""Generation evaluation and regression testing for causal language models."""
