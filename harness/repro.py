"""A failure as a script of its own: calls of `generate()` that should agree and do not, made as small as can be."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

Ids = tuple[int, ...]
Item = TypeVar("Item")

RUNS = 120  # of the model, at most, to make one failure smaller
DEFAULT_LENGTH = 20  # new tokens where nothing is said: the library's own
# Without these the model's own config decides: what then differs may differ for another reason.
KEPT = ("do_sample", "max_new_tokens")
WIDTH = 116
NAME_LENGTH = 60


@dataclass(frozen=True)
class Weights:
    """Where a model comes from, and how transformers is told to load it."""

    path: str  # a folder or a Hub id
    revision: str | None = None  # the commit, for a Hub id
    origin: str = ""  # what the suite says, where that is not the path
    dtype: str = "auto"
    attention: str = ""  # "": the library's choice
    device: str = "cpu"  # or "auto"
    quantization: Mapping[str, Any] = field(default_factory=dict)  # arguments of BitsAndBytesConfig
    trust_remote_code: bool = False
    encoder_decoder: bool = False


@dataclass(frozen=True)
class Side:
    """One call of `generate()`, and the row of its batch that is looked at."""

    name: str
    rows: tuple[Ids, ...]
    pad_token_id: int
    arguments: Mapping[str, Any]
    row: int = 0
    padding: str = "left"
    attention_mask: bool = True
    attention: str = ""  # set before the call, where the sides differ in it
    seed: int = 0

    @property
    def prompt(self) -> Ids:
        return self.rows[self.row]

    @property
    def length(self) -> int:
        """At most so many new tokens."""
        return int(self.arguments.get("max_new_tokens") or DEFAULT_LENGTH)


@dataclass(frozen=True)
class Reproduction:
    """What shows a failure: two sides that should give the same tokens, or one that should give the pinned ones."""

    weights: Weights
    sides: tuple[Side, ...]
    pinned: Ids | None = None
    shows: str = ""  # a sentence


Fails = Callable[[Reproduction], bool]


# --- made smaller ----------------------------------------------------------------------------------------------------


def minimise(reproduction: Reproduction, fails: Fails, runs: int = RUNS) -> Reproduction:
    """The same failure with fewer new tokens, rows and arguments and shorter prompts: every step is run again.

    Of a pinned call only the end is cut: what another prompt or batch would have given was never recorded.
    """
    steps = (_fewer_tokens, _fewer_rows, _fewer_arguments, _shorter_prompts, _fewer_tokens)
    tries = _Tries(fails, runs)
    for step in steps if reproduction.pinned is None else (_fewer_tokens,):
        reproduction = step(reproduction, tries)
    return reproduction


class _Tries:
    """Runs each candidate once, and none when it has run enough of them."""

    def __init__(self, fails: Fails, runs: int) -> None:
        self._fails = fails
        self._left = runs

    def __call__(self, candidate: Reproduction) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        return self._fails(candidate)


def _fewer_tokens(now: Reproduction, fails: Fails) -> Reproduction:
    """The least length at which it fails: greedy search goes the same way to whatever end."""
    passing, failing = 0, max(side.length for side in now.sides)
    while failing - passing > 1:
        length = (passing + failing) // 2
        candidate = _limited(now, length)
        if fails(candidate):
            now, failing = candidate, length
        else:
            passing = length
    return now


def _limited(now: Reproduction, length: int) -> Reproduction:
    def limited(side: Side) -> Mapping[str, Any]:
        ends = {"max_new_tokens": min(side.length, length)}
        if "min_new_tokens" in side.arguments:
            ends["min_new_tokens"] = min(side.arguments["min_new_tokens"], length)
        return {**side.arguments, **ends}

    pinned = None if now.pinned is None else now.pinned[:length]
    return dataclasses.replace(_with(now, lambda side: {"arguments": limited(side)}), pinned=pinned)


def _fewer_rows(now: Reproduction, fails: Fails) -> Reproduction:
    """Without neighbours that are not needed; one that stands in both batches leaves both of them."""
    neighbours = [row for side in now.sides for place, row in enumerate(side.rows) if place != side.row]

    def keeping(kept: Collection[Ids]) -> Reproduction:
        return _with(now, lambda side: _rows_of(side, kept))

    return keeping(_shrunk(tuple(dict.fromkeys(neighbours)), lambda kept: fails(keeping(kept))))


def _rows_of(side: Side, kept: Collection[Ids]) -> dict[str, Any]:
    places = [place for place, row in enumerate(side.rows) if place == side.row or row in kept]
    return {"rows": tuple(side.rows[place] for place in places), "row": places.index(side.row)}


def _fewer_arguments(now: Reproduction, fails: Fails) -> Reproduction:
    """Without arguments that both sides have; those in which they differ are what is shown."""
    first, *others = (side.arguments for side in now.sides)
    shared = [name for name in first if name not in KEPT and all(first[name] == other.get(name) for other in others)]

    def keeping(kept: Collection[str]) -> Reproduction:
        gone = {*shared} - {*kept}
        return _with(now, lambda side: {"arguments": {k: v for k, v in side.arguments.items() if k not in gone}})

    return keeping(_shrunk(tuple(shared), lambda kept: fails(keeping(kept))))


def _shorter_prompts(now: Reproduction, fails: Fails) -> Reproduction:
    """Ids cut out of prompts, those that are looked at first."""
    for prompt in dict.fromkeys(row for side in now.sides for row in (side.prompt, *side.rows)):
        now = _shorter(now, prompt, fails)
    return now


def _shorter(now: Reproduction, prompt: Ids, fails: Fails) -> Reproduction:
    """One prompt cut wherever it stands, from the left on; its last id stays, for generation goes on from it."""
    *begin, last = prompt

    def cut_to(kept: Ids) -> Reproduction:
        return _with(now, lambda side: {"rows": tuple((*kept, last) if row == prompt else row for row in side.rows)})

    return cut_to(_shrunk(tuple(begin), lambda kept: fails(cut_to(kept))))


def _shrunk(items: tuple[Item, ...], fails: Callable[[tuple[Item, ...]], bool]) -> tuple[Item, ...]:
    """Without whatever can be left out: all of it, then halves, quarters … down to single items."""
    size = len(items)
    while size:
        start = 0
        while start < len(items):
            fewer = items[:start] + items[start + size :]
            if fails(fewer):
                items = fewer
            else:
                start += size
        size //= 2
    return items


def _with(now: Reproduction, change: Callable[[Side], Mapping[str, Any]]) -> Reproduction:
    return dataclasses.replace(now, sides=tuple(dataclasses.replace(side, **change(side)) for side in now.sides))


# --- written ---------------------------------------------------------------------------------------------------------


def write(reproduction: Reproduction, folder: Path, name: str) -> Path:
    """`repro_NAME.py` in this folder; a file of that name that says something else is left alone."""
    text = script(reproduction)
    folder.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = folder / f"repro_{_safe(name)}{f'_{number}' if number > 1 else ''}.py"
        try:
            with path.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
            return path
        except FileExistsError:
            if path.read_bytes() == text.encode():
                return path
    raise AssertionError("count() never ends")


def _safe(name: str) -> str:
    """A name for a file, and for no other check."""
    safe = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    if safe == name and len(name) <= NAME_LENGTH:
        return name
    return f"{safe[-NAME_LENGTH:].strip('_')}_{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def script(reproduction: Reproduction) -> str:
    """Python that needs torch and transformers only: prints the difference and exits with 1, or with 0 if none."""
    weights = reproduction.weights
    names = [_class(weights), "AutoTokenizer", *(["BitsAndBytesConfig"] if weights.quantization else [])]
    sides = {side.name: _data(side) for side in reproduction.sides}
    said_by = f"  # {_printable(weights.origin)}" if weights.origin else ""
    parts = [
        _INTRODUCTION,
        "import sys\n\nimport torch\nimport transformers",
        f"from transformers import {', '.join(sorted(names))}\n",
        _comment(reproduction.shows),
        f"MODEL = sys.argv[1] if len(sys.argv) > 1 else {_literal(weights.path)}{said_by}",
        f"WHERE = {_literal(_where(weights))}",
        f"CALLS = {_literal(sides)}",
        f"PINNED = {_literal(reproduction.pinned)}\n\n",
        _loading(weights),
        _BODY,
    ]
    return "\n".join(part for part in parts if part)


def _class(weights: Weights) -> str:
    return "AutoModelForSeq2SeqLM" if weights.encoder_decoder else "AutoModelForCausalLM"


def _where(weights: Weights) -> dict[str, Any]:
    code = {"trust_remote_code": True} if weights.trust_remote_code else {}
    return ({"revision": weights.revision} if weights.revision else {}) | code


def _data(side: Side) -> dict[str, Any]:
    data = {f.name: getattr(side, f.name) for f in dataclasses.fields(side) if f.name not in ("name", "attention")}
    return data | ({"attention": side.attention} if side.attention else {})


def _loading(weights: Weights) -> str:
    arguments = [f"dtype={_literal(weights.dtype)}", "use_safetensors=True"]
    if weights.attention:
        arguments.append(f"attn_implementation={_literal(weights.attention)}")
    if weights.quantization:
        config = ", ".join(f"{name}={_literal(value)}" for name, value in weights.quantization.items())
        arguments.append(f"quantization_config=BitsAndBytesConfig({config})")
    placed = bool(weights.quantization) or weights.device == "auto"  # else accelerate is not needed
    if placed:
        arguments.append(f"device_map={_literal('auto' if weights.device == 'auto' else {'': weights.device})}")
    moved = "" if placed else f".to({_literal(weights.device)})"
    lines = "".join(f"        {argument},\n" for argument in arguments)
    return (
        f"def load():\n    model = {_class(weights)}.from_pretrained(\n        MODEL,\n        **WHERE,\n{lines}    )\n"
        f"    return model{moved}.eval(), AutoTokenizer.from_pretrained(MODEL, **WHERE)\n"
    )


def _comment(text: str) -> str:
    return textwrap.fill(_printable(text), WIDTH, initial_indent="# ", subsequent_indent="# ") if text else ""


def _printable(text: str) -> str:
    """On one line, whatever the text: nothing in it can end a comment."""
    return repr(text)[1:-1]


def _literal(value: Any, indent: int = 0) -> str:
    """A value as Python source, never as the text that it is."""
    inner = " " * (indent + 4)
    if isinstance(value, Mapping):
        if not value or all(isinstance(item, (int, str, float)) for item in value.values()):
            return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
        lines = [f"{inner}{_literal(key)}: {_literal(item, indent + 4)},\n" for key, item in value.items()]
        return "{\n" + "".join(lines) + " " * indent + "}"
    if isinstance(value, (list, tuple)):
        return _list(value, indent)
    source = repr(value)
    plain = isinstance(value, str) and not {"'", '"'} & set(value)
    return f'"{source[1:-1]}"' if plain else source


def _list(values: Sequence[Any], indent: int) -> str:
    items = [_literal(item, indent + 4) for item in values]
    inner = " " * (indent + 4)
    if any(isinstance(item, (list, tuple)) for item in values):
        return "[\n" + "".join(f"{inner}{item},\n" for item in items) + " " * indent + "]"
    short = f"[{', '.join(items)}]"
    if indent + len(short) < WIDTH - 20 or not all(isinstance(item, int) for item in values):
        return short
    filled = textwrap.fill(", ".join(items), WIDTH, initial_indent=inner, subsequent_indent=inner)
    return f"[\n{filled},\n{' ' * indent}]"


_INTRODUCTION = '''\
"""Shows that a model gives other tokens than it should, with torch and transformers alone.

    python THIS_FILE [MODEL]

Exits with 1 while that is so, and with 0 once it is not. MODEL: another folder or Hub id than the one below.
"""
'''

_BODY = '''

def generate(model, tokenizer, call):
    """The new tokens of one row of a batch, and the logits from which each was chosen (not for beams)."""
    rows, pad, left = call["rows"], call["pad_token_id"], call["padding"] == "left"
    longest = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        pads, real, none = [pad] * (longest - len(row)), [1] * len(row), [0] * (longest - len(row))
        ids.append(pads + row if left else row + pads)
        mask.append(none + real if left else real + none)
    inputs = {"input_ids": torch.tensor(ids, device=model.device)}
    if call["attention_mask"]:
        inputs["attention_mask"] = torch.tensor(mask, device=model.device)
    if "attention" in call:
        model.set_attn_implementation(call["attention"])
    torch.manual_seed(call["seed"])
    with torch.no_grad():
        output = model.generate(
            **inputs,
            **call["arguments"],
            **({"tokenizer": tokenizer} if stop_strings(model, call) else {}),
            pad_token_id=pad,
            output_logits=True,
            return_dict_in_generate=True,
        )
    place = call["row"] * (len(output.sequences) // len(rows))
    start = 1 if model.config.is_encoder_decoder else longest
    beams = call["arguments"].get("num_beams") or model.generation_config.num_beams or 1
    logits = [step[place].float() for step in output.logits] if beams == 1 else []
    return own(output.sequences[place, start:].tolist(), model, call), logits


def stop_strings(model, call):
    return call["arguments"].get("stop_strings") or model.generation_config.stop_strings


def own(tokens, model, call):
    """Without what fills the row up after its end."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    tokens = tokens[: next((place + 1 for place, token in enumerate(tokens) if token in ends), None)]
    while stop_strings(model, call) and tokens and tokens[-1] in (*ends, call["pad_token_id"]):
        tokens = tokens[:-1]
    return tokens


def main():
    sys.stdout.reconfigure(errors="backslashreplace")
    model, tokenizer = load()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {model.dtype} on {model.device}")
    tokens, logits = {}, {}
    for name, call in CALLS.items():
        print(f"{name}: row {call['row']} of {len(call['rows'])}, prompt ids {call['rows'][call['row']]}")
        tokens[name], logits[name] = generate(model, tokenizer, call)
    if PINNED is not None:
        tokens["pinned"] = own(PINNED, model, call)
    (first, its), (second, other) = tokens.items()
    if its == other:
        print(f"No difference: {len(its)} new token(s), the same on both sides.")
        return 0
    place = next((n for n, (a, b) in enumerate(zip(its, other)) if a != b), min(len(its), len(other)))
    print(f"DIFFERENT at new token {place}:")
    for name, ids in tokens.items():
        around = [f"{token} {tokenizer.decode([token])!r}" for token in ids[max(0, place - 4) : place + 4]]
        print(f"  {name}: {'… ' if place > 4 else ''}{', '.join(around)}{'' if place < len(ids) else ' (ended)'}")
    if place < min(len(its), len(other)):
        for name, mine, theirs in ((first, its[place], other[place]), (second, other[place], its[place])):
            if logits.get(name):
                logprobs = logits[name][place].log_softmax(-1)
                a, b = logprobs[mine].item(), logprobs[theirs].item()
                print(f"  {name}: log-probability {a:.4g} of its token, {b:.4g} of the other: margin {a - b:.4g} nats")
    return 1


if __name__ == "__main__":
    sys.exit(main())
'''
