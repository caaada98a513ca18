"""The selftest: every fault changes what it says it changes, is gone afterwards, and what catches nothing is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.backends import load
from harness.backends.faults import FAULTS, plant
from harness.cli import app
from harness.errors import NotSupported, UsageError
from harness.inputs import Generation, Message, Model
from harness.load import load as load_suite
from harness.plan import Check, plan
from harness.record import Batch, Completion, Request, Target, Text
from harness.selftest import chosen, selftest

SUITE = """
suite: teeth
models:
  tiny: {{path: {path}, dtype: float32, device: cpu}}
generation:
  greedy: {{do_sample: false, max_new_tokens: 12}}
prompts:
  words: w1 w2 w3
  other: w7 w8
tests:
  - name: repeats
    prompts: [words]
    expect: {{deterministic: true}}
  - name: pads
    prompts: [words]
    expect: {{padding_invariant: true}}
  - name: blunt
    prompts: [words]
    expect: {{new_tokens: {{min: 0, max: 1000}}}}
  - name: wrong-as-it-is
    prompts: [words, other]
    expect: {{contains: no such word}}
"""


@pytest.fixture(scope="module")
def suite(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("suites") / "teeth.yaml"
    file.write_text(SUITE.format(path=tiny(bos=True)))
    return file


def checks(file: Path) -> Sequence[Check]:
    return plan([load_suite(file)]).checks


PROMPT = Text(text="w1 w2 w3")
CHAT = Text(messages=(Message(role="user", content="w5"),))
LONG = Text(text="w9 w8 w7 w6 w5 w4 w3 w2 w1")
GREEDY = Generation(do_sample=False, max_new_tokens=24)
ENDS = ("eos_removed", "minimum_dropped", "text_after_end")  # the tiny model never ends by itself
SAMPLING = Generation(do_sample=True, temperature=0.5, top_p=0.8, repetition_penalty=1.3, max_new_tokens=4)
# Of each fault, a request whose answer it must change.
TOUCHED = {
    "right_padding": Request(PROMPT, GREEDY, layout=Batch((PROMPT, LONG))),
    "dropped_mask": Request(PROMPT, GREEDY, layout=Batch((PROMPT, LONG))),
    "missing_template": Request(CHAT, GREEDY),
    "double_bos": Request(PROMPT, GREEDY),
    "eos_removed": Request(PROMPT, GREEDY.model_copy(update={"max_new_tokens": 60})),
    "sampling_on": Request(PROMPT, GREEDY),
    "penalty_added": Request(PROMPT, GREEDY),
    "layer_perturbed": Request(PROMPT, GREEDY),
    "cache_positions": Request(PROMPT, GREEDY),
    "limit_dropped": Request(PROMPT, GREEDY),
    "minimum_dropped": Request(PROMPT, GREEDY.model_copy(update={"min_new_tokens": 20})),
    "stop_dropped": Request(PROMPT, GREEDY),
    "prompt_in_output": Request(PROMPT, GREEDY),
    "one_token": Request(PROMPT, GREEDY),
    "one_sequence": Request(PROMPT, GREEDY.model_copy(update={"num_beams": 2, "num_return_sequences": 2})),
    "drawn_colder": Request(PROMPT, Generation(do_sample=True, temperature=60.0, max_new_tokens=24)),
    "processors_reversed": Request(PROMPT, SAMPLING, kind="processed"),
    "text_after_end": Request(PROMPT, GREEDY, layout=Batch((PROMPT, LONG))),
}


def test_every_fault_has_a_request_here() -> None:
    assert set(TOUCHED) == set(FAULTS)


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ENDS])
def test_a_fault_changes_the_answer_and_leaves_no_trace(name: str, tiny: Callable[..., Path]) -> None:
    path = tiny(spells=True, chat=False) if name == "stop_dropped" else tiny(bos=True, tie_word_embeddings=False)
    backend = load(Target("tiny", "tiny", Model(path=str(path), dtype="float32", device="cpu")))
    backend.tokenizer.bos_token = "<s>"  # type: ignore[attr-defined]
    request = TOUCHED[name]
    if name == "stop_dropped":
        (free,) = backend.generate([request])
        assert isinstance(free, Completion)
        stop = next(token for token in free.tokens if token.isascii() and token.isalnum())
        request = request.replace(generation=GREEDY.model_copy(update={"stop_strings": (stop,)}))

    def ids() -> tuple[float, ...]:
        (answer,) = backend.generate([request])
        assert isinstance(answer, Completion), answer
        processed = tuple(score for score in answer.processed_logits if score > -1e9)
        return (*answer.prompt_ids, -1, *answer.ids, -1, *answer.tail, -1, len(answer.returned), *processed)

    healthy = ids()
    with plant(backend, name):
        faulty = ids()
    assert faulty != healthy
    assert ids() == healthy


def test_a_model_without_eos_and_one_without_a_minimum(tiny: Callable[..., Path]) -> None:
    """The tiny model never says EOS by itself: EOS is made to be what it says third."""
    backend = load(Target("tiny", "tiny", Model(path=str(tiny()), dtype="float32", device="cpu")))
    request = Request(PROMPT, GREEDY)
    (free,) = backend.generate([request])
    assert isinstance(free, Completion)
    third = free.ids[2]
    backend.model.generation_config.eos_token_id = third  # type: ignore[attr-defined]
    held = Request(PROMPT, GREEDY.model_copy(update={"min_new_tokens": 20}))

    def length(asked: Request) -> int:
        (answer,) = backend.generate([asked])
        assert isinstance(answer, Completion)
        return answer.new_tokens

    natural = free.ids.index(third) + 1
    batch = request.replace(layout=Batch((PROMPT, LONG)))

    def tail() -> tuple[int, ...]:
        (answer,) = backend.generate([batch])
        assert isinstance(answer, Completion)
        return answer.tail

    assert set(tail()) <= {0}
    with plant(backend, "text_after_end"):
        assert set(tail()) == {94}
    assert set(tail()) <= {0}
    assert (length(request), length(held)) == (natural, 24)
    with plant(backend, "eos_removed"):
        assert length(request) == 24
    with plant(backend, "minimum_dropped"):
        assert length(held) == natural
    assert (length(request), length(held)) == (natural, 24)


def test_who_catches_what_and_who_nothing(suite: Path) -> None:
    result = selftest(checks(suite), ("right_padding", "sampling_on"))
    caught = {tooth.test: tooth.caught for tooth in result.teeth}
    assert caught["repeats"] == ("sampling_on",)
    assert "right_padding" in caught["pads"]
    assert [tooth.test for tooth in result.toothless] == ["blunt"]
    assert {tooth.test: tooth.healthy for tooth in result.teeth}["wrong-as-it-is"] == "failed"
    assert result.missed == ()


def test_quick_asks_until_each_has_caught_something(suite: Path) -> None:
    only = [check for check in checks(suite) if check.test.name == "pads"]
    result = selftest(only, ("right_padding", "dropped_mask"), quick=True)
    assert result.teeth[0].caught == ("right_padding",)
    assert selftest(only, ("right_padding", "dropped_mask")).teeth[0].caught == ("right_padding", "dropped_mask")


def test_faults_need_a_model_that_really_runs(tmp_path: Path) -> None:
    scripted = Target("s", "s", Model.model_validate({"backend": "scripted", "completions": [{"text": "a"}]}))
    with pytest.raises(NotSupported, match="really runs"):
        plant(load(scripted), "right_padding")


def test_an_unknown_fault_is_refused_with_the_list(suite: Path) -> None:
    with pytest.raises(UsageError, match="no fault is called 'paddng'") as caught:
        selftest(checks(suite), ("paddng",))
    assert "right_padding" in str(caught.value)


def test_one_target_of_each_suite_is_chosen(suite: Path, tmp_path: Path) -> None:
    text = suite.read_text()
    other = tmp_path / "other.yaml"
    other.write_text(
        text.replace("suite: teeth", "suite: other\nattention: [eager, sdpa]\nbaseline: {attention: sdpa}")
    )
    groups = chosen([*checks(suite), *checks(other)])
    assert [{check.target.name for check in group} for group in groups] == [{"tiny-none"}, {"tiny-none-sdpa"}]


def test_the_command_tells_and_fails(suite: Path) -> None:
    done = CliRunner().invoke(app, ["selftest", str(suite), "--fault", "sampling_on", "-k", "repeats or blunt"])
    assert done.exit_code == 1
    assert "teeth::repeats  (deterministic)  sampling_on" in done.stdout
    assert "teeth::blunt  (new_tokens)       toothless: catches none of these faults" in done.stdout
    assert "TOOTHLESS  1 of 2 expectations catch nothing" in done.stdout
    done = CliRunner().invoke(app, ["selftest", str(suite), "--fault", "sampling_on", "-k", "repeats"])
    assert done.exit_code == 0
    assert "GOOD TEETH  each of 1 expectations catches a fault" in done.stdout
    quick = ["selftest", str(suite), "--fault", "right_padding", "--fault", "dropped_mask", "-k", "pads", "--quick"]
    assert "dropped_mask      caught by nothing that was still tried" in CliRunner().invoke(app, quick).stdout
