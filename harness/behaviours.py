"""How generation breaks in real life, row by row, and what of this package catches each row.

Expectations, invariants and lint rules name the rows that they catch (`catches`); what is refused or recorded
without being asked stands in GUARDS, and why a row cannot be caught on a user's model in OUT_OF_REACH.
`docs/behaviours.md` is written from here: `harness behaviours --write docs/behaviours.md`.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.expectations import TABLE
from harness.expectations.invariants import INVARIANTS

FAMILIES: Mapping[str, str] = {
    "D": "Determinism",
    "P": "Batching and padding",
    "E": "Stopping",
    "L": "Length",
    "C": "Configuration",
    "T": "Template and tokenizer",
    "K": "Cache and attention",
    "Q": "Quantization",
    "X": "Decoding strategies",
    "M": "Speed and memory",
    "N": "Environment",
}

# S1 silently wrong, S2 silently different, S3 loud.
ROWS: Mapping[str, tuple[str, str]] = {
    "D1": ("S1", "Greedy search is not repeatable within one process"),
    "D2": ("S2", "The result depends on the batch: its size, its other rows"),
    "D3": ("S2", "A seed gives other samples when the batch is ordered otherwise"),
    "D4": ("S1", "Sampling is on without anybody having asked for it"),
    "D5": ("S2", "Sampling from the one likeliest token is not greedy search"),
    "D6": ("S2", "Beam search with sampling draws otherwise for the same seed"),
    "D7": ("S2", "Threads, CPU type, TF32 or workspace settings change low bits"),
    "P1": ("S1", "A decoder-only model is padded on the right"),
    "P2": ("S1", "Position ids count the pads of a left-padded row"),
    "P3": ("S1", "forward() on a left-padded batch without position ids, in scoring code"),
    "P4": ("S1", "No attention mask is passed, and it cannot be inferred"),
    "P5": ("S2", "The warning about a missing mask has gone"),
    "P6": ("S1", "The prompt holds the pad token, which is then taken for padding"),
    "P7": ("S1", "An encoder-decoder without a mask attends to its padding"),
    "P8": ("S1", "The encoder's mask is ignored while decoding"),
    "P9": ("S1", "A row whose attention is masked altogether gives NaN or zeros"),
    "P10": ("S1", "Flash attention on a padded batch gives garbage"),
    "P11": ("S1", "pipeline(batch_size=…) pads on the side that the tokenizer ships with"),
    "P12": ("S2", "What fills a row after its end leaks into what is judged"),
    "P13": ("S1", "The state of a recurrent model, or the routing of a mixture, sees the pads"),
    "E1": ("S1", "The EOS list lacks the token with which the chat template ends a turn"),
    "E2": ("S1", "config.json and generation_config.json disagree on EOS, or one is missing"),
    "E3": ("S2", "A minimum length does not hold back every EOS id"),
    "E4": ("S1", "Stop strings are missed, crash, or leave text behind them"),
    "E5": ("S2", "Special tokens are not shown, and so it is not seen that the model never stopped"),
    "E6": ("S2", "A time limit or a criterion stops the whole batch instead of the row"),
    "L1": ("S2", "No length is given: 20 tokens in all, or 20 new ones"),
    "L2": ("S3", "A prompt longer than the default length raises, or not"),
    "L3": ("S2", "The model ships a max_length that is taken for the default"),
    "L4": ("S2", "max_length counts the prompt"),
    "L5": ("S2", "inputs_embeds have another default length than ids"),
    "L6": ("S2", "A bare pipeline makes 256 tokens, by sampling"),
    "L7": ("S1", "Prompt and new tokens pass the context window"),
    "C1": ("S1", "The model's own generation config switches on sampling or penalties"),
    "C2": ("S1", "A GenerationConfig of one's own drops the model's values, or is merged with them"),
    "C3": ("S2", "An argument has no effect: temperature under greedy search"),
    "C4": ("S3", "A shipped generation config cannot be saved again"),
    "C5": ("S1", "Generation arguments stand in config.json: used, ignored or moved, by version"),
    "C6": ("S3", "Setting model.config at run time is refused"),
    "C7": ("S3", "Defaults of GenerationConfig are None where they were numbers"),
    "C8": ("S1", "A misspelt argument is swallowed"),
    "C9": ("S2", "No pad token is set"),
    "C10": ("S1", "A checkpoint is written in the dialect of another major version"),
    "C11": ("S3", "Arguments for loading quantized models are gone"),
    "C12": ("S2", "The default dtype is another one"),
    "T1": ("S1", "The prompt begins with BOS twice"),
    "T2": ("S1", "The generation prompt is missing"),
    "T3": ("S3", "apply_chat_template returns another type"),
    "T4": ("S1", "Tokenising and decoding does not give the text back"),
    "T5": ("S2", "Decoding cleans up spaces, or does so no more"),
    "T6": ("S2", "Another tokenizer class is taken than the one that the folder names"),
    "T7": ("S1", "The tokenizer has more ids than the model has embeddings, or the other way round"),
    "T8": ("S1", "Truncation cuts off the end of the prompt"),
    "T9": ("S2", "The template adds a system prompt, or the date of the day"),
    "K1": ("S1", "A static cache gives other tokens than a dynamic one"),
    "K2": ("S1", "A sliding window is off, shifted, or in the wrong layers"),
    "K3": ("S1", "An attention implementation lacks what the model needs (softcapping)"),
    "K4": ("S2", "The default attention implementation is another one"),
    "K5": ("S1", "A quantized cache corrupts the output"),
    "K6": ("S1", "Going on from a returned cache is wrong"),
    "K7": ("S3", "past_key_values are of another type"),
    "K8": ("S1", "use_cache: false gives other tokens"),
    "K9": ("S1", "A compiled model runs a stale graph"),
    "Q1": ("S2", "int8 depends on the rows of the batch"),
    "Q2": ("S3", "4-bit weights compute in float32, slowly"),
    "Q3": ("S1", "A kernel multiplies quantized weights wrongly"),
    "Q4": ("S1", "A loss of quality that equal tokens on easy prompts hide"),
    "Q5": ("S2", "Quantized kernels differ between devices"),
    "X1": ("S1", "Speculative decoding is not lossless, or passes the limit"),
    "X2": ("S3", "A decoding strategy was removed and is fetched from the network"),
    "X3": ("S1", "A penalty counts the pads of a left-padded row"),
    "X4": ("S2", "Logits processors act in another order"),
    "X5": ("S2", "Scores of beams, length penalty or early stopping mean something else"),
    "X6": ("S3", "Several sequences a prompt come in another number or order"),
    "X7": ("S1", "The sampler draws otherwise than the distribution says: a filter lost, a generator stuck"),
    "M1": ("S3", "A release is slower"),
    "M2": ("S3", "More tokens are made, or more memory taken, than was meant"),
    "M3": ("S3", "Memory grows from case to case"),
    "N1": ("S1", "A model spread over devices gives gibberish"),
    "N2": ("S2", "Other libraries change under the same version of transformers"),
    "N3": ("S2", "Another engine applies other defaults"),
    "N4": ("S3", "Code or files are fetched while generating"),
}

# What happens without a word in the suite.
GUARDS: Mapping[str, str] = {
    "C8": "a suite's keys are a closed set: a misspelt one is an error with a suggestion",
    "C11": "levels are loaded with a quantization config, never with the arguments that are gone",
    "C12": "dtypes of the loaded weights are read back; another one than asked for is an error",
    "D7": "threads, CPU capability, TF32 and workspace settings are in each run's `run.json`",
    "E5": "completions count ids, and say why they ended (`finish`) from ids, never from text",
    "E6": "why it ended is told row by row",
    "K4": "the implementation that was used is recorded with each target and completion",
    "L4": "`max_length` is refused; lengths are new tokens only",
    "L7": "refused before it runs, with the numbers",
    "M2": "tokens, seconds and memory are recorded with each completion",
    "M3": "one target is resident at a time; peak memory is recorded batch by batch",
    "N2": "the versions of all libraries that matter are in each run's `run.json`",
    "N4": "no code that comes with a model runs unless the suite says `trust_remote_code: true`",
    "P5": "warnings are counted and kept with each completion",
    "P9": "NaN or Inf in the logits is an error that names the first step",
    "P12": "a row ends at its own end; what fills it afterwards is kept apart",
    "Q3": "quantized layers are compared with their own dequantized weights when a target is loaded",
    "Q5": "the device is recorded with each target; `only: {device: …}` binds a test to one",
    "Q2": "module types and dtypes of the loaded weights are recorded with each target",
    "T7": "an id without an embedding is refused before it runs",
}

# What `harness compare` shows, for it takes two targets.
COMPARED: Mapping[str, str] = {
    "K5": "two generation configs, of which one has `cache_implementation: quantized`: KL on the same path",
    "M1": "speed and time to the first token, in turns with the baseline (`--side-by-side`)",
    "N1": "two models of the same path, one with `device: cuda:0` and one with `device: auto`: KL is 0",
    "Q4": "KL, top-1 agreement and perplexity on the baseline's path, where equal texts hide them; `budget`",
}

# Rows that cannot be told on a model of the user's, or not yet, each with the reason.
OUT_OF_REACH: Mapping[str, str] = {
    "C6": "about code that sets model.config; the harness never does",
    "C7": "about code that calculates with fields of GenerationConfig; the harness does not",
    "K7": "about code that indexes past_key_values; the harness hands the cache on as it is",
    "L5": "prompts are text or messages; the harness has no requests by embeddings",
    "N3": "only transformers is run",
    "T3": "about code that calls apply_chat_template; the harness asks for text, which is the same everywhere",
    "X2": "strategies that need code from the network are refused by the closed set of generation arguments",
}


def caught_by() -> dict[str, list[str]]:
    """Row -> the words that catch it, as a suite or a report has them."""
    from harness.lint import RULES

    found: dict[str, list[str]] = {row: [] for row in ROWS}
    words = (
        *((f"`{name}`", kind) for name, kind in TABLE.items()),
        *((f"`invariants: {name}`", kind) for name, kind in INVARIANTS.items()),
        *((f"lint `{name}`", rule) for name, rule in RULES.items()),
    )
    for word, catcher in words:
        for row in getattr(catcher, "catches", ()):
            found[row].append(word)
    return found


def document() -> str:
    """The coverage table as markdown."""
    found = caught_by()
    caught = [row for row in ROWS if found[row] or row in GUARDS or row in COMPARED]
    silent = [row for row, (severity, _) in ROWS.items() if severity != "S3"]
    lines = [
        "# Behaviours",
        "",
        "How generation has broken for users of transformers, and what catches it here. S1 is silently wrong, S2",
        "silently different, S3 loud. This page is written from the code by `harness behaviours`.",
        "",
        f"Of {len(ROWS)} rows {len(caught)} are caught; of the {len(silent)} that are silent, "
        f"{sum(row in caught for row in silent)}.",
    ]
    for family, title in FAMILIES.items():
        lines += ["", f"## {title}", "", "| | | what breaks | caught by |", "|---|---|---|---|"]
        lines += [_line(row, found[row]) for row in ROWS if row[0] == family]
    return "\n".join(lines) + "\n"


def _line(row: str, words: list[str]) -> str:
    severity, title = ROWS[row]
    parts = [", ".join(words)] if words else []
    if row in GUARDS:
        parts.append(f"always: {GUARDS[row]}")
    if row in COMPARED:
        parts.append(f"`harness compare`: {COMPARED[row]}")
    if not parts:
        parts.append(f"not caught: {OUT_OF_REACH[row]}")
    return f"| {row} | {severity} | {title} | {'; '.join(parts)} |"
