"""Scripts of failures, run as a stranger would: in a process that has torch and transformers, and no harness."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import backends
from harness.backends.reproducing import NotReproducible, failing, from_failure, reproduce
from harness.inputs import Generation, Message, Model
from harness.pins.pin import Floor, Header, Lane, Memory, Pin
from harness.record import Batch, Completion, Request, Step, Target, TargetFacts, Text
from harness.repro import Reproduction, minimise
from harness.repro_script import write

NEW = 12
GREEDY = Generation(do_sample=False, max_new_tokens=NEW, no_repeat_ngram_size=0)
PROMPT = Text(text="w13 w4 w15 w6 w27 w8 w39 w10")
LONG = Text(text=" ".join(f"w{number * 7 % 90}" for number in range(24)))
NEIGHBOURS = (Text(text="w1 w2"), LONG, Text(text="w5 w6 w7"))
RAGGED = (NEIGHBOURS[0], PROMPT, *NEIGHBOURS[1:])
NASTY = 'w1 "quoted" \'text\'\nlines {braces} \\ 😀 """ w2'
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load(tiny: Any) -> Load:
    loaded: dict[str, Any] = {}

    def build(level: str = "none", architecture: str = "llama", dtype: str = "float32", **config: Any) -> Any:
        key = f"{level}{architecture}{dtype}{config}"
        if key not in loaded:
            model = Model(path=str(tiny(architecture, **{"ends": False} | config)), dtype=dtype, device="cpu")
            loaded[key] = backends.load(Target("tiny", "tiny", model, level))
        return loaded[key]

    return build


def answered(backend: Any, *requests: Request) -> list[Completion]:
    answers = [answer for request in requests for answer in backend.generate([request])]
    assert all(isinstance(answer, Completion) for answer in answers), answers
    return answers


def padded(backend: Any, prompt: Text = PROMPT, rows: tuple[Text, ...] = RAGGED, **layout: Any) -> list[Completion]:
    """Alone, and in a ragged batch."""
    alone = Request(prompt, GREEDY, "alone")
    return answered(backend, alone, alone.replace(layout=Batch(rows, **layout)))


def pinned(
    done: Completion, ids: tuple[int, ...], prompt_ids: tuple[int, ...] | None = None, steps: Any = ()
) -> Memory:
    pin = Pin("p", "greedy", "", prompt_ids or done.prompt_ids, ids, done.finish, "", steps)
    lane, facts = Lane("cpu", "float32", "none", "sdpa", "any"), TargetFacts("tiny")
    header = Header("s", "tiny", lane, "", "", "", 0, (1,), "left", {}, {}, Floor(1e-3, 0, 0))
    return Memory("s.yaml::tiny::t[p]", "s.yaml", lane, facts, {}, pin, header)


def likelier(done: Completion, place: int, nats: float) -> tuple[Step, ...]:
    """The steps of a completion with one token more likely than it was."""
    moved = dataclasses.replace(done.steps[place], logprob=done.steps[place].logprob + nats)
    return (*done.steps[:place], moved, *done.steps[place + 1 :])


def other_than(token: int) -> int:
    return 10 if token != 10 else 11


def held(path: Path, name: str) -> Any:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name]
    return ast.literal_eval(found[0])


# Ways to generate whose scripts must give the very tokens that were recorded.
WAYS: dict[str, dict[str, Any]] = {
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "penalty": {"repetition_penalty": 1.8, "min_new_tokens": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "temperature": 50.0, "seed": 3, "num_return_sequences": 2},
}


# --- a process without harness ---------------------------------------------------------------------------------------

# Runs each script as `python SCRIPT` would; one process for all of them, because torch is slow to import.
ALL = """
import contextlib, io, json, runpy, sys
try:
    import harness
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("harness can be imported here")
found = []
for path in sys.argv[1:]:
    said, sys.argv = io.TextIOWrapper(io.BytesIO(), "utf-8"), [path]
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_path(path, run_name="__main__")
            code = "it did not exit"
        except SystemExit as done:
            code = done.code
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    said.flush()
    found.append([code, said.buffer.getvalue().decode()])
    assert "harness" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment for `python -S` in which every installed library is there but harness."""
    folder = tmp_path_factory.mktemp("libraries")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("harness", "_editable", "__editable")) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def python(*arguments: str | Path, env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", *map(str, arguments)]
    return subprocess.run(
        command, env=env, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False, timeout=250
    )


def run_all(paths: list[Path], env: dict[str, str], folder: Path) -> list[tuple[int, str]]:
    done = python("-c", ALL, *paths, env=env, folder=folder)
    assert done.returncode == 0, done.stderr
    return [(code, said) for code, said in json.loads(done.stdout.splitlines()[-1])]


def test_the_script_of_a_failure_needs_no_harness(load: Load, stranger: Any, tmp_path: Path) -> None:
    done = padded(load(), padding="right")
    assert done[0].ids != done[1].ids
    path = reproduce(load(), done, tmp_path / "repros", "check", shows="right padding changes the tokens")
    assert isinstance(path, Path)

    missing = python("-c", "import harness", env=stranger, folder=tmp_path)
    assert "No module named 'harness'" in missing.stderr
    shown = python(path, env=stranger, folder=tmp_path)
    assert shown.returncode == 1, shown.stderr
    assert "Traceback" not in shown.stderr
    assert "DIFFERENT at new token 0" in shown.stdout
    assert "margin" in shown.stdout

    calls = held(path, "CALLS")
    alone, batch = calls["alone"], calls["in a batch, padded on the right"]
    assert len(batch["rows"]) == 2  # of four
    assert len(alone["rows"][0]) < 8
    for call in (alone, batch):
        assert call["arguments"] == {"do_sample": False, "max_new_tokens": 1}
    assert batch["rows"][batch["row"]] == alone["rows"][0]
    assert f"prompt ids {alone['rows'][0]}" in shown.stdout


def by_hand(backend: Any, prompt: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return backend.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)


def said_by(cases: dict[str, Any], env: dict[str, str], folder: Path) -> dict[str, tuple[Any, str]]:
    """Exit code and output of the script of each case."""
    assert all(isinstance(case, Reproduction) for case in cases.values()), cases
    paths = [write(case, folder, f"n{number}") for number, case in enumerate(cases.values())]
    return dict(zip(cases, run_all(paths, env, folder), strict=True))


@pytest.mark.slow
def test_scripts_show_what_differs(load: Load, stranger: Any, tmp_path: Path) -> None:
    """The exit code, and tokens and margins against forward passes by hand."""
    plain, bytewise, nf4 = load(), load(spells=True), load("nf4")
    (spoken, *_) = answered(bytewise, Request(Text(text=NASTY), GREEDY, "alone"))
    wrong = (*spoken.ids[:3], other_than(spoken.ids[3]), *spoken.ids[4:])
    (again,) = answered(plain, Request(PROMPT, GREEDY))
    moved = pinned(again, again.ids, steps=likelier(again, 4, 0.02))
    odd = _pinned_as(plain, *_two_of(plain))
    odd = dataclasses.replace(odd, sides=tuple(dataclasses.replace(side, attention="odd") for side in odd.sides))
    cases: dict[str, Any] = {
        "whole": from_failure(plain, padded(plain, padding="right")),
        "bytes": _failing_pin(bytewise, spoken, wrong),
        "nf4": from_failure(nf4, padded(nf4, padding="right")),
        "no mask": from_failure(plain, padded(plain, attention_mask=False, pad_token_id=1)),
        "less likely": from_failure(plain, [again], memory=moved),
        "beams": _failing_pin(plain, *_two_of(plain, **WAYS["beams"])),
        "another attention": odd,  # nothing shows that it was set, but that it is refused
    }

    said = said_by(cases, stranger, tmp_path)
    assert "odd" in str(said.pop("another attention")[0])
    assert {name: code for name, (code, _) in said.items()} == dict.fromkeys(said, 1), said
    assert f"DIFFERENT at new token 3:\n  alone: {_around(bytewise, spoken.ids)}" in said["bytes"][1]
    assert f"  pinned: {_around(bytewise, wrong)}" in said["bytes"][1]
    logprobs = by_hand(bytewise, [*spoken.prompt_ids, *spoken.ids[:3]])
    own, other = (logprobs[ids[3]].item() for ids in (spoken.ids, wrong))
    margin = float(said["bytes"][1].split("margin ")[1].split(" nats")[0])
    assert margin == pytest.approx(own - other, rel=1e-3)
    assert f"DIFFERENT at new token 4, {again.ids[4]} " in said["less likely"][1]
    assert "-0.02 nats, allowed 0.005" in said["less likely"][1]
    assert "margin" not in said["beams"][1]


def test_scripts_generate_what_was_recorded(load: Load, stranger: Any, tmp_path: Path) -> None:
    """Whatever the arguments and the batch: once nothing differs they say so, and exit with 0."""
    plain, bytewise, seq2seq = load(), load(spells=True), load(architecture="bart", ends=True)
    (again,) = answered(plain, Request(PROMPT, GREEDY))
    (spoken,) = answered(bytewise, Request(PROMPT, GREEDY, Batch(RAGGED)))
    likely = from_failure(plain, [again], memory=pinned(again, again.ids, steps=likelier(again, 4, 0.02)))
    assert isinstance(likely, Reproduction)
    cases: dict[str, Any] = {
        "healthy": _forgiven(plain, padded(plain, padding="right"), padded(plain)),
        "encoder": _pinned_as(seq2seq, *_two_of(seq2seq)),
        "as likely": dataclasses.replace(likely, logprobs=tuple(step.logprob for step in again.steps)),
        **{name: _pinned_as(plain, *_two_of(plain, **given)) for name, given in WAYS.items()},
    }
    for backend, finish, given in (
        (load(eos_token_id=again.ids[5]), "eos", {}),
        (bytewise, "stop", {"stop_strings": (_letter(spoken),)}),
    ):
        early, wrong = _two_of(backend, **given)
        assert (early.finish, len(early.tail) > 0) == (finish, True)  # it was filled up, for its neighbours went on
        cases[finish] = _pinned_as(backend, early, wrong)

    said = said_by(cases, stranger, tmp_path)
    assert {name: code for name, (code, _) in said.items()} == dict.fromkeys(said, 0), said
    assert f"No difference: {NEW} new token(s)" in said["healthy"][1]
    assert f"No difference: {again.ids.index(again.ids[5]) + 1} new token(s)" in said["eos"][1]


def _forgiven(backend: Any, right: list[Completion], left: list[Completion]) -> Any:
    """The calls of a failure, but padded as they should be."""
    assert left[0].ids == left[1].ids
    found = from_failure(backend, right)
    assert isinstance(found, Reproduction)
    first, other = found.sides
    return dataclasses.replace(found, sides=(first, dataclasses.replace(other, padding="left")))


def _letter(done: Completion) -> str:
    """One that is said on the way, and can be a stop string."""
    return next(text for text in done.tokens[2:-2] if text.isascii() and text.isprintable())


def _failing_pin(backend: Any, done: Completion, wrong: tuple[int, ...]) -> Any:
    return from_failure(backend, [done], memory=pinned(done, wrong))


def _pinned_as(backend: Any, done: Completion, wrong: tuple[int, ...]) -> Any:
    """The script of a pin that fails, once what was pinned is what is said."""
    found = _failing_pin(backend, done, wrong)
    assert isinstance(found, Reproduction)
    return dataclasses.replace(found, pinned=done.ids)


def _two_of(backend: Any, **given: Any) -> tuple[Completion, tuple[int, ...]]:
    layout: Any = "alone" if "prompt_lookup_num_tokens" in given else Batch(RAGGED)
    (done,) = answered(
        backend, Request(PROMPT, Generation(**{"do_sample": False, "max_new_tokens": NEW} | given), layout)
    )
    return done, (*done.ids[:-1], other_than(done.ids[-1]))


def _around(backend: Any, ids: tuple[int, ...]) -> str:
    return ", ".join(f"{token} {backend.tokenizer.decode([token])!r}" for token in ids[:7])


# --- which failures, and how small -----------------------------------------------------------------------------------


def small(backend: Any, done: list[Completion], **fields: Any) -> Reproduction:
    found = from_failure(backend, done, **fields)
    assert isinstance(found, Reproduction), found
    fails = failing(backend, done[0].ids if found.pinned is not None else ())
    assert fails(found)
    made = minimise(found, fails)
    assert fails(made)
    return made


def test_a_failure_is_run_again_exactly_as_it_was(load: Load) -> None:
    """Rows that do not fit the context are cut as they were; ids are those of the completions."""
    done = padded(load(), rows=(Text(text="w1 " * 500), PROMPT), padding="right")
    found = from_failure(load(), done)
    assert isinstance(found, Reproduction)
    alone, batch = found.sides
    assert alone.prompt == batch.prompt == done[0].prompt_ids
    assert len(batch.rows[0]) == 128 - NEW


def test_a_minimised_failure_still_fails(load: Load) -> None:
    done = padded(load(), padding="right")
    made = small(load(), done)

    alone, batch = made.sides
    assert (len(alone.rows), len(batch.rows)) == (1, 2)
    assert len(batch.prompt) < len(done[0].prompt_ids)
    assert batch.length == 1


def test_a_healthy_pair_does_not_fail(load: Load) -> None:
    right = from_failure(load(), padded(load(), padding="right"))
    healthy = _forgiven(load(), padded(load(), padding="right"), padded(load()))

    assert isinstance(right, Reproduction)
    assert failing(load())(right)
    assert not failing(load())(healthy)


def test_chat_is_rendered_as_it_was(load: Load) -> None:
    chat = Text(messages=(Message(role="user", content="w7 w8 w9"),))
    done = padded(load(), chat, (chat, LONG), padding="right")
    found = from_failure(load(), done)

    assert isinstance(found, Reproduction)
    assert found.sides[0].prompt == done[0].prompt_ids
    assert load().tokenizer.decode(found.sides[0].prompt).endswith("<a>")


def test_a_pin_is_cut_after_the_token_that_is_another(load: Load) -> None:
    (done,) = answered(load(), Request(PROMPT, GREEDY))
    wrong = (*done.ids[:5], other_than(done.ids[5]), *done.ids[6:])

    for made in (
        small(load(), [done], memory=pinned(done, wrong)),
        small(load(), [done, *answered(load(), Request(PROMPT, GREEDY, kind="replay", continuation=wrong))]),
    ):
        assert made.pinned == wrong[:6]
        assert made.sides[0].arguments == {**GREEDY.arguments(), "max_new_tokens": 6}
        assert made.sides[0].rows == (done.prompt_ids,)


def test_a_pin_with_the_same_tokens_is_cut_after_the_one_that_is_less_likely(load: Load, tmp_path: Path) -> None:
    (done,) = answered(load(), Request(PROMPT, GREEDY))
    memory = pinned(done, done.ids, steps=likelier(done, 6, -0.3))
    made = small(load(), [done], memory=memory)

    assert made.pinned == done.ids[:7]
    assert made.logprobs == pytest.approx([step.logprob for step in memory.pin.steps[:7]])
    assert made.tolerance == pytest.approx(5 * 1e-3)  # times the floor
    path = reproduce(load(), [done], tmp_path, "check", memory=memory)
    assert isinstance(path, Path)
    assert held(path, "LOGPROBS") == list(made.logprobs)


def test_a_token_forced_at_the_limit_is_not_taken_for_the_failure(load: Load, monkeypatch: Any) -> None:
    backend = load()
    monkeypatch.setattr(backend.model.generation_config, "forced_eos_token_id", 1)
    (done,) = answered(backend, Request(PROMPT, GREEDY))
    assert done.ids[-1] == 1
    wrong = (*done.ids[:5], other_than(done.ids[5]), *done.ids[6:])

    assert small(backend, [done], memory=pinned(done, wrong)).pinned == wrong


def test_a_flip_by_rounding_does_not_stand_in_for_a_failure(load: Load) -> None:
    """In 16 bits two shapes may part by a near-tie with nothing wrong: that is not what is to be shown."""
    backend = load(dtype="bfloat16")
    made = small(backend, padded(backend, padding="right"))
    first, other = answered(backend, *(_request_of(side) for side in made.sides))
    margins = [step.logprob - step.top_logprobs[1] for step in (first.steps[0], other.steps[0])]

    assert first.ids != other.ids
    assert max(margins) > 2 * 2.0**-8 * first.steps[0].max_logit


def _request_of(side: Any) -> Request:
    rows = tuple(Text(ids=ids) for ids in side.rows)
    generation = Generation(do_sample=False, max_new_tokens=side.length)
    return Request(rows[side.row], generation, Batch(rows, side.padding), row=side.row)


def test_repeats_must_be_equal_to_the_token_and_other_shapes_need_not(load: Load) -> None:
    """The same call twice, of which the second answer is another: as chance, or a kernel, would have it."""
    backend = load(dtype="bfloat16")
    again = Request(PROMPT, GREEDY, "alone")
    first, second = answered(backend, again, again.replace(repeat=1))
    tie = dataclasses.replace(
        second.steps[0], top_ids=[second.ids[0], first.ids[0]], top_logprobs=[-0.5, -0.5], logprob=-0.5
    )
    flipped = dataclasses.replace(
        second,
        ids=(other_than(first.ids[0]), *second.ids[1:]),
        steps=(dataclasses.replace(tie, top_ids=[other_than(first.ids[0]), first.ids[0]]), *second.steps[1:]),
    )
    mine = dataclasses.replace(
        first.steps[0], top_ids=[first.ids[0], flipped.ids[0]], top_logprobs=[-0.5, -0.5], logprob=-0.5
    )
    first = dataclasses.replace(first, steps=(mine, *first.steps[1:]))
    found = from_failure(backend, [first, flipped])
    assert isinstance(found, Reproduction)
    assert [side.name for side in found.sides] == ["alone", "alone, again"]
    assert not failing(backend)(found)  # the model itself is steady

    elsewhere = dataclasses.replace(flipped, request=flipped.request.replace(layout=Batch(RAGGED)))
    assert from_failure(backend, [first, elsewhere]) == NotReproducible("all of its calls gave the same tokens")


def test_other_attention_is_set_on_both_sides(load: Load) -> None:
    request = Request(PROMPT, GREEDY, "alone")
    plain, eager = answered(load(), request, request.replace(attention="eager"))
    changed = dataclasses.replace(eager, ids=(other_than(plain.ids[0]), *eager.ids[1:]), steps=())
    found = from_failure(load(), [plain, changed])

    assert isinstance(found, Reproduction)
    assert [side.attention for side in found.sides] == [load().facts.attention, "eager"]
    assert load().facts.attention == "sdpa"


def test_levels_are_written_as_arguments_of_bitsandbytes(load: Load) -> None:
    found = from_failure(load("nf4"), padded(load("nf4"), padding="right"))
    assert isinstance(found, Reproduction)
    assert found.weights.quantization == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    assert found.weights.dtype == "float32"


# --- what no script can show -----------------------------------------------------------------------------------------


def reason(backend: Any, done: list[Completion], **fields: Any) -> str:
    found = from_failure(backend, done, **fields)
    assert isinstance(found, NotReproducible), found
    return found.reason


def test_what_cannot_be_shown_says_why(load: Load) -> None:
    backend = load()
    alone = Request(PROMPT, GREEDY, "alone")
    (done,) = answered(backend, alone)
    scored = alone.replace(kind="score", continuation=(other_than(done.ids[0]), *done.ids[1:]))
    wrong = (other_than(done.ids[0]),)

    def elsewhere(**changes: Any) -> Completion:
        return dataclasses.replace(done, request=alone.replace(**changes), ids=wrong, steps=())

    assert "nothing was generated" in reason(backend, [])
    assert "one call" in reason(backend, [done])
    assert "the same tokens" in reason(backend, [done, *answered(backend, alone.replace(repeat=1))])
    assert "different prompts" in reason(backend, [done, elsewhere(prompt=LONG)])
    assert "kind score" in reason(backend, [done, dataclasses.replace(elsewhere(), request=scored)])
    assert "fresh process" in reason(backend, [done, elsewhere(fresh_process=True)])
    assert "two calls" in reason(backend, [done, elsewhere(resume_after=3)])
    assert "float32" in reason(backend, [done, elsewhere(float32=True)])
    assert "not known" in reason(backend, [done], memory=pinned(done, done.ids))
    close = pinned(done, done.ids, steps=likelier(done, 2, 0.004))
    assert "no token is far" in reason(backend, [done], memory=close)
    assert "nothing is pinned" in reason(backend, [done], memory=dataclasses.replace(close, pin=None))
    assert "other ids" in reason(backend, [done], memory=pinned(done, wrong, (1, 2)))
    assert "no model of transformers" in reason(object(), [done])


def test_a_failure_that_does_not_come_back_is_not_written(load: Load, tmp_path: Path) -> None:
    request = Request(PROMPT, GREEDY, "alone")
    done = answered(load(), request, request.replace(repeat=1))
    done[1] = dataclasses.replace(done[1], ids=(other_than(done[0].ids[0]), *done[0].ids[1:]))

    found = reproduce(load(), done, tmp_path / "repros", "check")
    assert isinstance(found, NotReproducible)
    assert "by itself" in found.reason
    assert not (tmp_path / "repros").exists()


def test_other_libraries_levels_cannot_be_written(load: Load) -> None:
    pytest.importorskip("optimum.quanto")
    backend = load("quanto-int8")
    assert "quanto-int8 cannot be asked for" in reason(backend, padded(backend, padding="right"))
