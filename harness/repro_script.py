"""A failure as a script of its own, for whoever has torch and transformers and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from harness.repro import Output, Pinned, Reproduction, Scores, Side, Weights

WIDTH = 116
NAME_LENGTH = 60


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
    """Python that needs torch and transformers only: prints what is wrong and exits with 1, or with 0 if nothing is."""
    weights, evidence = reproduction.weights, reproduction.evidence
    names = [_class(weights), "AutoTokenizer", *(["BitsAndBytesConfig"] if weights.quantization else [])]
    said_by = f"  # {_printable(weights.origin)}" if weights.origin else ""
    is_output = isinstance(evidence, Output)  # there the sentence is data, for it is printed
    head = [
        f'"""{_SHOWS[type(evidence)]}, with torch and transformers alone.\n{_USAGE}',
        "import sys\n\nimport torch\nimport transformers",
        f"from transformers import {', '.join(sorted(names))}\n",
        "" if is_output else _comment(reproduction.shows),
        f"MODEL = sys.argv[1] if len(sys.argv) > 1 else {_literal(weights.path)}{said_by}",
        f"WHERE = {_literal(_where(weights))}",
        *_constants(reproduction),
    ]
    made = "" if isinstance(evidence, Scores) else _GENERATE
    parts = ["\n".join(line for line in head if line), _loading(weights), made, _MAIN[type(evidence)], _END]
    return "\n\n\n".join(part.strip() for part in parts if part) + "\n"


def _constants(reproduction: Reproduction) -> list[str]:
    """What is called, and what is known of it, as data."""
    evidence = reproduction.evidence
    if isinstance(evidence, Scores):
        recorded = [dict(likely) for likely in evidence.recorded]
        return [
            f"PROMPT = {_literal(reproduction.sides[0].prompt)}",
            f"TOKENS = {_literal(evidence.ids)}  # that were said then",
            "# Log-probabilities then, by id: at each of these tokens its own first, then the likeliest others.",
            f"RECORDED = {_literal(recorded)}",
            f"LIMIT = {_literal(evidence.limit)}  # nats: of the root mean square of all changes",
        ]
    calls = f"CALLS = {_literal({side.name: _data(side) for side in reproduction.sides})}"
    if isinstance(evidence, Output):
        return [
            calls,
            f"OUTPUT = {_literal(evidence.sequences)}  # the tokens that came back",
            f"COMPARED = {evidence.compared}  # by so many of them it is told whether it is the same; None: by all",
            f"WHY = {_paragraph(reproduction.shows)}",
        ]
    pin = evidence or Pinned(())
    return [
        calls,
        f"PINNED = {_literal(pin.ids if evidence else None)}",
        f"LOGPROBS = {_literal(pin.logprobs)}  # of the pinned tokens, where these are what changed",
        f"TOLERANCE = {_literal(pin.tolerance)}  # nats by which each of them may be off\n\n",
    ]


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


def _paragraph(text: str) -> str:
    """A text as Python source, over as many lines as it takes."""
    if len(text) < WIDTH - 20:
        return str(_literal(text))
    whole = textwrap.TextWrapper(WIDTH - 30, drop_whitespace=False, replace_whitespace=False, expand_tabs=False)
    cut = whole.wrap(text)
    return "(\n" + "".join(f"    {_literal(part)}\n" for part in cut) + ")"


def _literal(value: Any, indent: int = 0) -> str:
    """A value as Python source, never as the text that it is."""
    inner = " " * (indent + 4)
    if isinstance(value, Mapping):
        if not value or all(isinstance(item, (int, str, float)) for item in value.values()):
            flat = ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items())
            return "{" + (flat if _fits(flat, indent, value.values()) else _wrapped(flat.split(", "), indent)) + "}"
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
    if any(isinstance(item, (list, tuple, Mapping)) for item in values):
        return "[\n" + "".join(f"{inner}{item},\n" for item in items) + " " * indent + "]"
    flat = ", ".join(items)
    return "[" + (flat if _fits(flat, indent, values) else _wrapped(items, indent)) + "]"


def _fits(flat: str, indent: int, values: Iterable[Any]) -> bool:
    """Whether it stays on one line: what holds more than numbers does, however long it is."""
    return indent + len(flat) < WIDTH - 20 or not all(isinstance(value, (int, float)) for value in values)


def _wrapped(items: Sequence[str], indent: int) -> str:
    inner = " " * (indent + 4)
    unbroken = ", ".join(item.replace(" ", "\0") for item in items)
    filled = textwrap.fill(unbroken, WIDTH, initial_indent=inner, subsequent_indent=inner)
    return "\n" + filled.replace("\0", " ") + f",\n{' ' * indent}"


_SHOWS: Mapping[type, str] = {
    type(None): "Shows that a model gives other tokens than it should",
    Pinned: "Shows that a model gives other tokens, or other log-probabilities, than it did",
    Output: "Shows what a model says and should not",
    Scores: "Shows that a model gives other log-probabilities than it did",
}

_USAGE = '''
    python THIS_FILE [MODEL]

Exits with 1 while that is so, and with 0 once it is not. MODEL: another folder or Hub id than the one below.
"""
'''

_GENERATE = '''
def generate(model, tokenizer, call):
    """What comes back for one row of a batch, and the logits from which each token was chosen (not for beams)."""
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
    copies = len(output.sequences) // len(rows)
    place = call["row"] * copies
    start = 1 if model.config.is_encoder_decoder else longest
    beams = call["arguments"].get("num_beams") or model.generation_config.num_beams or 1
    logits = [step[place].float() for step in output.logits] if beams == 1 else []
    return output.sequences[place : place + copies, start:].tolist(), logits


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
'''

_TOKENS = '''
def probabilities(tokenizer, tokens, logits):
    """1 where one of the tokens, which are as they should be, is not as likely as it was."""
    for place, (token, step, before) in enumerate(zip(tokens, logits, LOGPROBS)):
        now = step.log_softmax(-1)[token].item()
        if not abs(now - before) <= TOLERANCE:  # NaN, too
            print(f"DIFFERENT at new token {place}, {token} {tokenizer.decode([token])!r}:")
            print(f"  log-probability {now:.6g}, pinned {before:.6g}: {now - before:.4g} nats, allowed {TOLERANCE:.2g}")
            return 1
    print(f"No difference: {len(tokens)} new token(s), the same on both sides.")
    return 0


def main():
    sys.stdout.reconfigure(errors="backslashreplace")
    model, tokenizer = load()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {model.dtype} on {model.device}")
    tokens, logits = {}, {}
    for name, call in CALLS.items():
        print(f"{name}: row {call['row']} of {len(call['rows'])}, prompt ids {call['rows'][call['row']]}")
        sequences, logits[name] = generate(model, tokenizer, call)
        tokens[name] = own(sequences[0], model, call)
    if PINNED is not None:
        tokens["pinned"] = own(PINNED, model, call)
    (first, its), (second, other) = tokens.items()
    if its == other:
        return probabilities(tokenizer, its, logits[first])
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
'''

_WORDS = """

def main():
    sys.stdout.reconfigure(errors="backslashreplace")
    model, tokenizer = load()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {model.dtype} on {model.device}")
    ((name, call),) = CALLS.items()
    sequences, _ = generate(model, tokenizer, call)
    if len(sequences) > 1:
        sequences = [own(tokens, model, call) for tokens in sequences]
    print(f"prompt ({name}): {tokenizer.decode(call['rows'][call['row']])!r}")
    for tokens in sequences:
        print(f"output: {tokenizer.decode(tokens, skip_special_tokens=True)!r}")
        print(f"tokens: {', '.join(f'{token} {tokenizer.decode([token])!r}' for token in tokens)}")
    if [tokens[:COMPARED] for tokens in sequences] == [tokens[:COMPARED] for tokens in OUTPUT]:
        print(f"STILL SO: {WHY}")
        return 1
    print(f"ANOTHER OUTPUT now. What was wrong with this one: {WHY}")
    for tokens in OUTPUT:
        print(f"  {tokenizer.decode(tokens, skip_special_tokens=True)!r}")
    return 0
"""

_FORWARD = """

def main():
    sys.stdout.reconfigure(errors="backslashreplace")
    model, tokenizer = load()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {model.dtype} on {model.device}")
    print(f"prompt: {tokenizer.decode(PROMPT)!r}")
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + TOKENS], device=model.device), use_cache=False).logits
    logprobs = logits[0, len(PROMPT) - 1 : -1].float().log_softmax(-1).cpu()
    known = [(place, one, then) for place, likely in enumerate(RECORDED) for one, then in likely.items()]
    changes = [logprobs[place, one].item() - then for place, one, then in known]
    moved = (sum(change**2 for change in changes) / len(changes)) ** 0.5
    own = [logprobs[place, token].item() - RECORDED[place][token] for place, token in enumerate(TOKENS)]
    place = max(range(len(own)), key=lambda place: abs(own[place]))
    token, then = TOKENS[place], RECORDED[place][TOKENS[place]]
    print(f"largest change of a token: new token {place}, {token} {tokenizer.decode([token])!r}:")
    print(f"  log-probability {then + own[place]:.6g}, then {then:.6g}: {own[place]:.4g} nats")
    failed = not moved <= LIMIT  # NaN, too
    print(f"{'DIFFERENT' if failed else 'No difference'}: log-probabilities moved by {moved:.4g} nats", end=" ")
    print(f"(root mean square of {len(changes)} of them), allowed {LIMIT:.2g}")
    return int(failed)
"""

_MAIN: Mapping[type, str] = {type(None): _TOKENS, Pinned: _TOKENS, Output: _WORDS, Scores: _FORWARD}

_END = """

if __name__ == "__main__":
    sys.exit(main())
"""
