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
from harness.backends.calls import NotReproducible, request_of
from harness.backends.reproducing import calls, differing, pair, reproduce, smallest
from harness.expectations.content import Contains, NotContains
from harness.expectations.invariance import PaddingInvariant
from harness.expectations.output import NoRepetition
from harness.expectations.pinned import OfPrompt, OverSet
from harness.expectations.pinned import Pinned as PinnedTest
from harness.expectations.sampling import Returns
from harness.expectations.stopping import StopsAtEos, Truncated
from harness.inputs import Generation, Message, Model
from harness.load import load as load_suite
from harness.pins.pin import Floor, Header, Lane, Memory, Pin
from harness.plan import plan
from harness.record import Batch, Completion, Request, Step, Target, TargetFacts, Text
from harness.repro import Output, Pinned, Reproduction, Scores
from harness.repro_script import write
from harness.runner import Runner

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
    done: Completion, ids: tuple[int, ...], prompt_ids: tuple[int, ...] | None = None, steps: Any = (), **spec: Any
) -> OfPrompt:
    """The expectation that this completion does what was pinned."""
    pin = Pin("p", "greedy", "", prompt_ids or done.prompt_ids, ids, done.finish, "", steps)
    lane, facts = Lane("cpu", "float32", "none", "sdpa", "any"), TargetFacts("tiny")
    header = Header("s", "tiny", lane, "", "", "", 0, (1,), "left", {}, {}, Floor(1e-3, 0, 0))
    memory = Memory("s.yaml::tiny::t[p]", "s.yaml", lane, facts, {}, pin, header)
    return OfPrompt(PinnedTest(**{"level": "tokens"} | spec), memory)


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


@pytest.mark.slow
def test_scripts_of_every_kind_need_no_harness(load: Load, stranger: Any, tmp_path: Path) -> None:
    """Two calls, a pin, an output, recorded scores: each shows its failure, and says so no more once it is none."""
    (done,) = answered(load(), Request(PROMPT, GREEDY))
    said = small(load(), [done], NotContains(texts=(done.tokens[5],)))
    moved = small(load(), [done], pinned(done, done.ids, steps=all_moved(done, 0.004)))
    cases: dict[str, Any] = {
        "pair": small(load(), padded(load(), padding="right")),
        "pin": small(load(), [done], pinned(done, (other_than(done.ids[0]), *done.ids[1:]))),
        "output": said,
        "scores": moved,
    }
    healed: dict[str, Any] = {
        "pair now": _forgiven(load(), padded(load(), padding="right"), padded(load())),
        "pin now": held_to(load(), done),
        "output now": dataclasses.replace(said, evidence=Output(((5, 6),))),
        "scores now": dataclasses.replace(moved, evidence=scores_of(done, moved.evidence.limit)),
    }
    found = said_by(cases | healed, stranger, tmp_path)

    assert {name: code for name, (code, _) in found.items()} == dict.fromkeys(cases, 1) | dict.fromkeys(healed, 0), (
        found
    )
    output = found["output"][1]
    assert f"STILL SO: the output contains {done.tokens[5]!r}\n" in output
    assert f"prompt (alone): {load().tokenizer.decode(said.sides[0].prompt)!r}\n" in output
    assert f"output: {load().tokenizer.decode(said.evidence.sequences[0])!r}\n" in output
    assert "ANOTHER OUTPUT now" in found["output now"][1]
    # All of them moved alike, so that the mean square is that of each.
    assert "(root mean square of 12 of them), allowed 0.0028" in found["scores"][1]
    for before in ("moved by ", "then -"):
        told = found["scores"][1].split(before)[1].split(" nats")[0].split(": ")[-1]
        assert abs(float(told)) == pytest.approx(0.004, rel=0.02)
    assert "root mean square of 240 of them" in found["scores now"][1]


def all_moved(done: Completion, nats: float, first: int = 0) -> tuple[Step, ...]:
    """The steps of a completion with every id likelier than it was; from the first-th likeliest on."""
    return tuple(
        dataclasses.replace(
            step,
            logprob=step.logprob + (0 if first else nats),
            top_logprobs=[value + (nats if place >= first else 0) for place, value in enumerate(step.top_logprobs)],
        )
        for step in done.steps
    )


def scores_of(done: Completion, limit: float) -> Scores:
    recorded = [tuple(zip(step.top_ids, step.top_logprobs, strict=True)) for step in done.steps]
    return Scores(done.ids, tuple(recorded), limit)


@pytest.mark.slow
def test_the_script_of_a_failure_runs_by_itself(load: Load, stranger: Any, tmp_path: Path) -> None:
    done = padded(load(), padding="right")
    assert done[0].ids != done[1].ids
    path = reproduce(load(), [(PaddingInvariant(side="right"), done)], tmp_path / "repros", "check")
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
    beams = _one_of(plain, **WAYS["beams"])
    odd = held_to(plain, _one_of(plain))
    odd = dataclasses.replace(odd, sides=tuple(dataclasses.replace(side, attention="odd") for side in odd.sides))
    cases: dict[str, Any] = {
        "whole": pair(plain, padded(plain, padding="right")),
        "bytes": held_to(bytewise, spoken, Pinned(wrong)),
        "nf4": pair(nf4, padded(nf4, padding="right")),
        "no mask": pair(plain, padded(plain, attention_mask=False, pad_token_id=1)),
        "less likely": held_to(plain, again, Pinned(again.ids, logprobs_of(likelier(again, 4, 0.02)), 0.005)),
        "beams": held_to(plain, beams, Pinned((*beams.ids[:-1], other_than(beams.ids[-1])))),
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


@pytest.mark.slow
def test_scripts_generate_what_was_recorded(load: Load, stranger: Any, tmp_path: Path) -> None:
    """Whatever the arguments and the batch: once nothing differs they say so, and exit with 0."""
    plain, bytewise, seq2seq = load(), load(spells=True), load(architecture="bart", ends=True)
    (again,) = answered(plain, Request(PROMPT, GREEDY))
    (spoken,) = answered(bytewise, Request(PROMPT, GREEDY, Batch(RAGGED)))
    cases: dict[str, Any] = {
        "healthy": _forgiven(plain, padded(plain, padding="right"), padded(plain)),
        "encoder": held_to(seq2seq, _one_of(seq2seq)),
        "as likely": held_to(plain, again, Pinned(again.ids, logprobs_of(again.steps), 1e-6)),
        **{name: held_to(plain, _one_of(plain, **given)) for name, given in WAYS.items()},
    }
    for backend, finish, given in (
        (load(eos_token_id=again.ids[5]), "eos", {}),
        (bytewise, "stop", {"stop_strings": (_letter(spoken),)}),
    ):
        early = _one_of(backend, **given)
        assert (early.finish, len(early.tail) > 0) == (finish, True)  # it was filled up, for its neighbours went on
        cases[finish] = held_to(backend, early)
    twins = Generation(do_sample=True, top_k=1, num_return_sequences=2, max_new_tokens=NEW)
    (same,) = answered(plain, Request(PROMPT, twins))
    returned = small(plain, [same], Returns(sequences=2, distinct=True))

    said = said_by(cases | {"twins": returned}, stranger, tmp_path)
    (code, twice) = said.pop("twins")
    assert (code, twice.count("output: ")) == (1, 2)
    assert {name: code for name, (code, _) in said.items()} == dict.fromkeys(said, 0), said
    assert f"No difference: {NEW} new token(s)" in said["healthy"][1]
    assert f"No difference: {again.ids.index(again.ids[5]) + 1} new token(s)" in said["eos"][1]


def _forgiven(backend: Any, right: list[Completion], left: list[Completion]) -> Any:
    """The calls of a failure, but padded as they should be."""
    assert left[0].ids == left[1].ids
    found = pair(backend, right)
    assert isinstance(found, Reproduction)
    first, other = found.sides
    return dataclasses.replace(found, sides=(first, dataclasses.replace(other, padding="left")))


def _letter(done: Completion) -> str:
    """One that is said on the way, and can be a stop string."""
    return next(text for text in done.tokens[2:-2] if text.isascii() and text.isprintable())


def held_to(backend: Any, done: Completion, evidence: Any = None) -> Any:
    """The call that gave this, held to something: to what it gave, where nothing else is said."""
    found = calls(backend, [done])
    assert isinstance(found, Reproduction), found
    return dataclasses.replace(found, evidence=evidence or Pinned(done.ids))


def logprobs_of(steps: Any) -> tuple[float, ...]:
    return tuple(step.logprob for step in steps)


def _one_of(backend: Any, **given: Any) -> Completion:
    layout: Any = "alone" if "prompt_lookup_num_tokens" in given else Batch(RAGGED)
    generation = Generation(**{"do_sample": False, "max_new_tokens": NEW} | given)
    return answered(backend, Request(PROMPT, generation, layout))[0]


def _around(backend: Any, ids: tuple[int, ...]) -> str:
    return ", ".join(f"{token} {backend.tokenizer.decode([token])!r}" for token in ids[:7])


# --- which failures, and how small -----------------------------------------------------------------------------------


def small(backend: Any, done: list[Completion], expectation: Any = None) -> Any:
    found = smallest(backend, expectation or PaddingInvariant(), done)
    assert isinstance(found, Reproduction), found
    return found


def test_a_failure_is_run_again_exactly_as_it_was(load: Load) -> None:
    """Rows that do not fit the context are cut as they were; ids are those of the completions."""
    done = padded(load(), rows=(Text(text="w1 " * 500), PROMPT), padding="right")
    found = pair(load(), done)
    assert isinstance(found, Reproduction)
    alone, batch = found.sides
    assert alone.prompt == batch.prompt == done[0].prompt_ids
    assert len(batch.rows[0]) == 128 - NEW


def test_a_minimised_failure_still_fails(load: Load) -> None:
    done = padded(load(), padding="right")
    made = small(load(), done)

    assert differing(load())(made)
    alone, batch = made.sides
    assert (len(alone.rows), len(batch.rows)) == (1, 2)
    assert len(batch.prompt) < len(done[0].prompt_ids)
    assert batch.length == 1


def test_a_healthy_pair_does_not_fail(load: Load) -> None:
    right = pair(load(), padded(load(), padding="right"))
    healthy = _forgiven(load(), padded(load(), padding="right"), padded(load()))

    assert isinstance(right, Reproduction)
    assert differing(load())(right)
    assert not differing(load())(healthy)


def test_chat_is_rendered_as_it_was(load: Load) -> None:
    chat = Text(messages=(Message(role="user", content="w7 w8 w9"),))
    done = padded(load(), chat, (chat, LONG), padding="right")
    found = pair(load(), done)

    assert isinstance(found, Reproduction)
    assert found.sides[0].prompt == done[0].prompt_ids
    assert load().tokenizer.decode(found.sides[0].prompt).endswith("<a>")


def test_a_pin_is_cut_after_the_token_that_is_another(load: Load) -> None:
    (done,) = answered(load(), Request(PROMPT, GREEDY))
    wrong = (*done.ids[:5], other_than(done.ids[5]), *done.ids[6:])

    made = small(load(), [done], pinned(done, wrong))
    assert made.evidence == Pinned(wrong[:6])
    assert made.sides[0].arguments == {**GREEDY.arguments(), "max_new_tokens": 6}
    assert made.sides[0].rows == (done.prompt_ids,)


def test_a_pin_with_the_same_tokens_is_cut_after_the_one_that_is_less_likely(load: Load, tmp_path: Path) -> None:
    (done,) = answered(load(), Request(PROMPT, GREEDY))
    steps = likelier(done, 6, -0.3)
    expectation = pinned(done, done.ids, steps=steps)
    known = small(load(), [done], expectation).evidence

    assert known.ids == done.ids[:7]
    assert known.logprobs == pytest.approx(logprobs_of(steps[:7]))
    assert known.tolerance == pytest.approx(5 * 1e-3)  # times the floor
    path = reproduce(load(), [(expectation, [done])], tmp_path, "check")
    assert isinstance(path, Path)
    assert held(path, "LOGPROBS") == list(known.logprobs)


def test_a_token_forced_at_the_limit_is_not_taken_for_the_failure(load: Load, monkeypatch: Any) -> None:
    backend = load()
    monkeypatch.setattr(backend.model.generation_config, "forced_eos_token_id", 1)
    (done,) = answered(backend, Request(PROMPT, GREEDY))
    assert done.ids[-1] == 1
    wrong = (*done.ids[:5], other_than(done.ids[5]), *done.ids[6:])

    assert small(backend, [done], pinned(done, wrong)).evidence == Pinned(wrong)


@pytest.mark.slow
def test_a_flip_by_rounding_does_not_stand_in_for_a_failure(load: Load) -> None:
    """In 16 bits two shapes may part by a near-tie with nothing wrong: that is not what is to be shown."""
    backend = load(dtype="bfloat16")
    made = small(backend, padded(backend, padding="right"))
    first, other = answered(backend, *(request_of(side) for side in made.sides))
    margins = [step.logprob - step.top_logprobs[1] for step in (first.steps[0], other.steps[0])]

    assert first.ids != other.ids
    assert max(margins) > 2 * 2.0**-8 * first.steps[0].max_logit


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
    found = pair(backend, [first, flipped])
    assert isinstance(found, Reproduction)
    assert [side.name for side in found.sides] == ["alone", "alone, again"]
    assert not differing(backend)(found)  # the model itself is steady

    elsewhere = dataclasses.replace(flipped, request=flipped.request.replace(layout=Batch(RAGGED)))
    assert pair(backend, [first, elsewhere]) == NotReproducible("all of its calls gave the same tokens")


def test_other_attention_is_set_on_both_sides(load: Load) -> None:
    request = Request(PROMPT, GREEDY, "alone")
    plain, eager = answered(load(), request, request.replace(attention="eager"))
    changed = dataclasses.replace(eager, ids=(other_than(plain.ids[0]), *eager.ids[1:]), steps=())
    found = pair(load(), [plain, changed])

    assert isinstance(found, Reproduction)
    assert [side.attention for side in found.sides] == [load().facts.attention, "eager"]
    assert load().facts.attention == "sdpa"


def test_levels_are_written_as_arguments_of_bitsandbytes(load: Load) -> None:
    found = pair(load("nf4"), padded(load("nf4"), padding="right"))
    assert isinstance(found, Reproduction)
    assert found.weights.quantization == {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    assert found.weights.dtype == "float32"


# --- what one call says ----------------------------------------------------------------------------------------------


def test_an_output_that_holds_something_is_cut_after_it(load: Load) -> None:
    (done,) = answered(load(), Request(PROMPT, GREEDY))
    word = [token for place, token in enumerate(done.tokens) if token not in done.tokens[:place]][-1]
    assert done.tokens.index(word) > 3
    made = small(load(), [done], NotContains(texts=(word,)))
    (side,), said = made.sides, load().tokenizer.batch_decode(list(made.evidence.sequences))[0].split()

    assert side.arguments == {"do_sample": False, "max_new_tokens": len(said)}
    assert (said[-1], said.count(word)) == (word, 1)
    assert len(side.prompt) < len(done.prompt_ids)
    assert made.shows == f"the output contains {word!r}"
    assert following(load(), side.prompt, len(said)) == list(made.evidence.sequences[0])


def following(backend: Any, prompt: Any, length: int) -> list[int]:
    """Greedy search by hand."""
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(by_hand(backend, ids).argmax()))
    return ids[len(prompt) :]


def test_a_loop_is_cut_to_what_is_called_one(load: Load, monkeypatch: Any) -> None:
    stuck = load()
    monkeypatch.setattr(stuck.model.generation_config, "suppress_tokens", [token for token in range(95) if token != 7])
    (done,) = answered(stuck, Request(PROMPT, GREEDY.model_copy(update={"max_new_tokens": 60})))
    made = small(stuck, [done], NoRepetition(run=16, loop_tokens=60))

    assert made.evidence.sequences == ((7,) * 16,)
    assert made.sides[0].rows == (done.prompt_ids[-1:],)  # whatever it is asked
    assert made.shows == "stuck from token 0 on: 'w2' 16 times in a row"


@pytest.mark.parametrize("expectation", [Contains(texts=("Paris",)), StopsAtEos()])
def test_what_an_output_lacks_is_shown_by_the_whole_of_it(load: Load, expectation: Any) -> None:
    """A shorter prompt was not asked, and of a shorter output it would be no wonder."""
    penalty = GREEDY.model_copy(update={"repetition_penalty": 1.8})
    (done,) = answered(load(), Request(PROMPT, penalty))
    made = small(load(), [done], expectation)

    assert made.sides[0].rows == (done.prompt_ids,)
    assert made.sides[0].arguments == {"do_sample": False, "max_new_tokens": NEW, "repetition_penalty": 1.8}
    assert made.evidence == Output((done.ids,), None, True)
    assert made.shows == expectation.judge([done]).reason


def test_in_16_bits_the_beginning_of_an_output_tells(load: Load) -> None:
    (done,) = answered(load(dtype="bfloat16"), Request(PROMPT, GREEDY))
    assert small(load(dtype="bfloat16"), [done], StopsAtEos()).evidence.compared == NEW // 2


def test_an_output_that_is_right_when_it_is_asked_for_by_itself_is_not_written(load: Load, tmp_path: Path) -> None:
    (done,) = answered(load(), Request(PROMPT, GREEDY))
    done = dataclasses.replace(done, text="never said")
    found = reproduce(load(), [(NotContains(texts=("never said",)), [done])], tmp_path, "check")

    assert isinstance(found, NotReproducible)
    assert "by itself" in found.reason


# --- scores, and all prompts together --------------------------------------------------------------------------------


def over_set(one: OfPrompt) -> OverSet:
    return OverSet(one.spec, one.memory)


def test_scores_that_moved_a_little_are_shown_by_as_few_ids_as_can_be(load: Load) -> None:
    (done,) = answered(load(), Request(PROMPT, GREEDY))
    # 12 tokens, of 48 for which the limits are meant: widened by the fourth root of 4. The floor is 1e-3.
    limit = 2.0 * 2**0.5 * 1e-3
    own = small(load(), [done], pinned(done, done.ids, steps=all_moved(done, 0.004))).evidence
    assert own.limit == pytest.approx(limit)
    assert [[token for token, _ in likely] for likely in own.recorded] == [[token] for token in done.ids]
    others = small(load(), [done], pinned(done, done.ids, steps=all_moved(done, 0.005, first=1))).evidence
    assert {len(likely) for likely in others.recorded} == {2}  # of which one moved: 0.005 / √2 is above the limit


def test_of_all_prompts_the_one_that_moved_most_is_shown(load: Load, tmp_path: Path) -> None:
    done = answered(load(), *(Request(prompt, GREEDY) for prompt in (NEIGHBOURS[0], PROMPT, NEIGHBOURS[2])))
    moves = (0.0022, 0.003, 0.001)
    pins = [over_set(pinned(one, one.ids, steps=all_moved(one, nats))) for one, nats in zip(done, moves, strict=True)]
    path = reproduce(load(), [(pin, [one]) for pin, one in zip(pins, done, strict=True)], tmp_path, "set", "all moved")

    assert isinstance(path, Path)
    assert held(path, "PROMPT") == list(done[1].prompt_ids)
    assert held(path, "LIMIT") == pytest.approx(1.5 * 2**0.5 * 1e-3)
    assert "# all moved\n" in path.read_text("utf-8")


def test_tokens_that_changed_come_before_scores(load: Load, tmp_path: Path) -> None:
    done = answered(load(), *(Request(prompt, GREEDY) for prompt in (PROMPT, NEIGHBOURS[2])))
    wrong = (*done[1].ids[:3], other_than(done[1].ids[3]), *done[1].ids[4:])
    pins = pinned(done[0], done[0].ids, steps=all_moved(done[0], 0.3)), pinned(done[1], wrong)
    path = reproduce(load(), [(over_set(pin), [one]) for pin, one in zip(pins, done, strict=True)], tmp_path, "set")

    assert isinstance(path, Path)
    assert held(path, "PINNED") == list(wrong[:4])


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", Scores), ("float32", Pinned)])
def test_a_token_that_rounding_may_have_flipped_is_not_what_failed(load: Load, dtype: str, kind: type) -> None:
    (done,) = answered(load(dtype=dtype), Request(PROMPT, GREEDY))
    steps = list(all_moved(done, 0.5))
    tie = other_than(done.ids[4])
    steps[4] = dataclasses.replace(steps[4], top_ids=[tie, done.ids[4]], top_logprobs=[-0.7, -0.7], logprob=-0.7)
    wrong = (*done.ids[:4], tie, *done.ids[5:])

    assert isinstance(small(load(dtype=dtype), [done], pinned(done, wrong, steps=tuple(steps))).evidence, kind)


def test_where_only_the_distributions_are_pinned_other_tokens_are_no_failure(load: Load) -> None:
    (done,) = answered(load(), Request(PROMPT, GREEDY))
    path = (*done.ids[:4], other_than(done.ids[4]))
    (led,) = answered(load(), done.request.replace(kind="replay", continuation=path, whole=False))
    sampled = pinned(done, path, steps=all_moved(led, 0.02), level="distribution")
    assert small(load(), [done, led], sampled).evidence.ids == path
    steady = pinned(done, path, steps=led.steps, level="distribution")
    assert "no more than noise" in reason(load(), [done, led], steady)


def test_of_other_checks_over_all_prompts_one_that_fails_by_itself_is_shown(load: Load, tmp_path: Path) -> None:
    done = answered(load(), *(Request(prompt, GREEDY) for prompt in (PROMPT, NEIGHBOURS[2])))
    ended = [dataclasses.replace(one, finish="eos") for one in done]
    check = Truncated(max_rate=0.1)
    path = reproduce(load(), [(check, ended[:1]), (check, done[1:])], tmp_path, "set", "one of two is cut")

    assert isinstance(path, Path)
    assert held(path, "CALLS")["alone"]["rows"] == [list(done[1].prompt_ids)]
    none = reproduce(load(), [(check, ended[:1]), (check, ended[1:])], tmp_path, "set")
    assert none == NotReproducible("no prompt fails by itself: only all of them together do")
    assert "all of its 2 generations" in reason(load(), done, check)


# --- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(tiny: Any, tmp_path: Path, load: Load) -> Callable[[str], dict[str, Any]]:
    """The verdict of each test of a suite, with a script for each failure."""

    def run(tests: str) -> dict[str, Any]:
        file = tmp_path / "s.yaml"
        model = f"{{path: {tiny('llama', ends=False)}, dtype: float32, device: cpu}}"
        head = f"suite: s\nmodels: {{tiny: {model}}}\ngeneration: {{greedy: {{do_sample: false, max_new_tokens: 6}}}}\n"
        file.write_text(f"{head}prompts: {{one: w1 w2 w3, two: w5 w6}}\ntests:\n{tests}")
        checks = plan([load_suite(file)]).checks
        runner = Runner(checks, load=lambda *_, **__: load(), repros=tmp_path / "repros")
        return {record.check.split("::")[-1]: record.verdict for one in runner.run() for record in one.records}

    return run


def test_every_kind_of_check_gets_its_script(judged: Any, tmp_path: Path) -> None:
    found = judged(
        "  - {name: says, prompts: [one], expect: {contains: Paris}}\n"
        "  - {name: ends, prompts: [one, two], expect: {truncated: 0}}\n"
        "  - {name: often, prompts: [one, two], expect: {contains: Paris, pass_rate: 0.5}}\n"
        "  - {name: fine, prompts: [one], expect: {not_contains: Paris}}\n"
    )
    scripts = {name: [line for line in one.details if line.startswith("repro   ")] for name, one in found.items()}

    assert scripts["fine[one]"] == []
    written = [Path(lines[0].removeprefix("repro   python ")) for lines in scripts.values() if lines]
    assert len(written) == 3
    assert sorted(written) == sorted((tmp_path / "repros").iterdir())
    assert {held(path, "WHY") for path in written} == {
        "the output does not contain 'Paris'",
        "1 of 1 prompt (100%) stopped only because of the limit, at most 0% wanted",
    }


def test_a_rate_that_is_met_needs_no_script(judged: Any, load: Load, tmp_path: Path) -> None:
    answers = answered(load(), *(Request(Text(text=text), GREEDY) for text in ("w1 w2 w3", "w5 w6")))
    one, two = (done.tokens[:6] for done in answers)
    word = next(word for word in one if word not in two)
    found = judged(f"  - {{name: often, prompts: [one, two], expect: {{contains: {word}, pass_rate: 0.4}}}}\n")

    assert found["often"].status == "passed"
    assert found["often"].reason.startswith("1 of 2")
    assert not (tmp_path / "repros").exists()


def test_a_verdict_stands_whatever_becomes_of_its_script(judged: Any, monkeypatch: Any) -> None:
    def breaks(*_: Any) -> None:
        raise RuntimeError("no more\nwords")

    monkeypatch.setattr("harness.backends.reproducing.reproduce", breaks)
    verdict = judged("  - {name: says, prompts: [one], expect: {contains: Paris}}\n")["says[one]"]
    assert verdict.status == "failed"
    assert verdict.details[-1] == "repro   none: RuntimeError: no more"


# --- what no script can show -----------------------------------------------------------------------------------------


def reason(backend: Any, done: list[Completion], expectation: Any = None) -> str:
    found = smallest(backend, expectation or PaddingInvariant(), done)
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
    assert "the same tokens" in reason(backend, [done, *answered(backend, alone.replace(repeat=1))])
    assert "different prompts" in reason(backend, [done, elsewhere(prompt=LONG)])
    assert "kind score" in reason(backend, [done, dataclasses.replace(elsewhere(), request=scored)])
    assert "fresh process" in reason(backend, [done, elsewhere(fresh_process=True)])
    assert "two calls" in reason(backend, [done, elsewhere(resume_after=3)])
    assert "float32" in reason(backend, [done, elsewhere(float32=True)])
    assert "not known" in reason(backend, [done], pinned(done, done.ids))
    close = pinned(done, done.ids, steps=likelier(done, 2, 0.0005))
    assert "no more than noise" in reason(backend, [done], close)
    assert "nothing is pinned" in reason(backend, [done], OfPrompt(close.spec))
    assert "other ids" in reason(backend, [done], pinned(done, wrong, (1, 2)))
    assert "no model of transformers" in reason(object(), [done])


def test_a_failure_that_does_not_come_back_is_not_written(load: Load, tmp_path: Path) -> None:
    request = Request(PROMPT, GREEDY, "alone")
    done = answered(load(), request, request.replace(repeat=1))
    done[1] = dataclasses.replace(done[1], ids=(other_than(done[0].ids[0]), *done[0].ids[1:]))

    found = reproduce(load(), [(PaddingInvariant(), done)], tmp_path / "repros", "check")
    assert isinstance(found, NotReproducible)
    assert "by itself" in found.reason
    assert not (tmp_path / "repros").exists()


def test_other_libraries_levels_cannot_be_written(load: Load) -> None:
    pytest.importorskip("optimum.quanto")
    backend = load("quanto-int8")
    assert "quanto-int8 cannot be asked for" in reason(backend, padded(backend, padding="right"))
