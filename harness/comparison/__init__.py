"""Which candidate to ship: every target against the baseline, in distribution, text, memory and speed."""
