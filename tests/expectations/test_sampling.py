"""Seeds, the order of a batch, and several sequences for one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from harness.expectations.invariance import FILLERS
from harness.expectations.sampling import Returns, Seeded
from harness.inputs import Generation
from harness.record import Batch, Completion, Request, Returned, Text, Verdict

SAMPLING = Generation(do_sample=True, max_new_tokens=3, seed=5)
PEERS = [Request(Text(text=text), SAMPLING) for text in ("one", "two words", "three words here")]
Answer = Callable[[Request], Sequence[int]]


def sampled(
    completion: Any,
    expectation: Seeded,
    ids: Answer,
    request: Request = PEERS[1],
    peers: Sequence[Request] = PEERS,
    **config: Any,
) -> Verdict:
    """The verdict when each request is answered with these ids; asks further as a run does."""
    effective = {"do_sample": True, "eos_token_id": 1} | config
    answers: list[Completion] = []
    asked = list(expectation.needs(request, peers))
    while asked:
        answers += [completion(ids(one), request=one, generation_config=effective) for one in asked]
        asked = [one for one in expectation.then(answers) if one not in {answer.request for answer in answers}]
    return expectation.judge(answers)


def row(request: Request) -> int:
    """Where the prompt stands in its batch."""
    assert isinstance(request.layout, Batch)
    return request.layout.rows.index(request.prompt)


def one_generator(request: Request) -> tuple[int, ...]:
    """As transformers draws: what a row gets depends on the seed and on its place."""
    return (10 + request.generation.seed, row(request), 1)


def one_for_each_row(request: Request) -> tuple[int, ...]:
    return (10 + request.generation.seed, 4, 1)


def certain(request: Request) -> tuple[int, ...]:
    return (5, 6, 1)


def unseeded(request: Request) -> tuple[int, ...]:
    return (5, 6 + request.repeat, 1)


SAME_AGAIN = "2 runs with seed 5: the same tokens"
OTHER_ORDER = "with the rows in another order the tokens are"


@pytest.mark.parametrize(
    ("arguments", "answer", "status", "reason"),
    [
        ({}, one_generator, "passed", SAME_AGAIN),
        ({"runs": 3}, certain, "passed", "3 runs with seed 5: the same tokens"),
        ({}, unseeded, "failed", "run 2 of 2 with seed 5 differs from the first at token 1"),
        ({"across_seeds": True}, one_generator, "passed", f"{SAME_AGAIN}; seeds 5, 6, 7: not all the same"),
        (
            {"across_seeds": True},
            certain,
            "failed",
            "seeds 5, 6, 7 all give the same 3 tokens: sampling is as good as greedy search here",
        ),
        ({"batch_order": "any"}, one_generator, "passed", f"{SAME_AGAIN}; {OTHER_ORDER} different"),
        ({"batch_order": "any"}, one_for_each_row, "passed", f"{SAME_AGAIN}; {OTHER_ORDER} the same"),
        ({"batch_order": "different"}, one_generator, "passed", f"{SAME_AGAIN}; {OTHER_ORDER} different"),
        (
            {"batch_order": "different"},
            one_for_each_row,
            "failed",
            f"{OTHER_ORDER} the same, and other seeds do change them",
        ),
        (
            {"batch_order": "different"},
            certain,
            "skipped",
            f"{OTHER_ORDER} the same, but 3 seeds give the same tokens as well",
        ),
        ({"batch_order": "same"}, one_for_each_row, "passed", f"{SAME_AGAIN}; {OTHER_ORDER} the same"),
        (
            {"batch_order": "same"},
            one_generator,
            "failed",
            "with the rows in another order the tokens differ at token 1",
        ),
        (
            {"batch_order": "same", "across_seeds": True},
            unseeded,
            "failed",
            "run 2 of 2 with seed 5 differs from the first",
        ),
    ],
)
def test_seeded(completion: Any, arguments: dict[str, Any], answer: Answer, status: str, reason: str) -> None:
    verdict = sampled(completion, Seeded(**arguments), answer)

    assert verdict.status == status
    assert verdict.reason.startswith(reason)
    if status == "failed":
        assert verdict.details[-1].startswith("remedy  ")


@pytest.mark.parametrize(("prompts", "prompt"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_every_row_moves_to_another_place(completion: Any, prompts: int, prompt: int) -> None:
    """In a reversed batch of odd size, the middle row would keep its place and draw the same numbers."""
    verdict = sampled(completion, Seeded(batch_order="different"), one_generator, PEERS[prompt], PEERS[:prompts])

    assert verdict.status == "passed", verdict.reason


@pytest.mark.parametrize(
    ("arguments", "answer", "numbers"),
    [
        ({}, certain, {"seed": 5, "runs": 2}),
        ({"batch_order": "any"}, one_generator, {"seed": 5, "runs": 2, "batch_order": "different"}),
        ({"batch_order": "any"}, certain, {"seed": 5, "runs": 2, "batch_order": "same"}),
        ({"across_seeds": True}, one_generator, {"seed": 5, "runs": 2, "seeds": 3}),
    ],
)
def test_what_was_seen_is_recorded(completion: Any, arguments: Any, answer: Answer, numbers: Any) -> None:
    assert dict(sampled(completion, Seeded(**arguments), answer).numbers) == numbers


def test_greedy_needs_no_seed(completion: Any) -> None:
    """And it is known after one batch, however much was asked for."""
    expectation = Seeded(runs=9, batch_order="same", across_seeds=True)
    asked = expectation.needs(PEERS[0], PEERS)
    answer = completion(request=asked[0], generation_config={"do_sample": False})

    assert len(asked) == 1
    assert not expectation.then([answer])
    assert expectation.judge([answer]).status == "skipped"


def test_the_batch_is_of_all_prompts() -> None:
    (asked,) = Seeded().needs(PEERS[0], PEERS)

    assert asked.layout == Batch((*(peer.prompt for peer in PEERS), FILLERS[0]))


def test_what_makes_sampling_narrow_is_told(completion: Any) -> None:
    verdict = sampled(completion, Seeded(across_seeds=True), certain, temperature=0.1, top_k=1)

    assert verdict.details[-1].endswith("(effective: temperature 0.1, top_k 1)")


@pytest.mark.parametrize("written", [{"runs": 1}, {"batch_order": "reversed"}, {"seeds": 3}, False])
def test_what_makes_no_sense_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        Seeded.model_validate(written)


def several(*scores: float | None, ids: Sequence[tuple[int, ...]] = ((1,), (2,), (3,))) -> dict[str, Any]:
    sequences = zip(ids, scores or (None,) * len(ids), strict=True)
    return {"returned": tuple(Returned(one, f"text {one[0]}", score) for one, score in sequences)}


TWINS = ((1, 2), (1, 3), (1, 2))


@pytest.mark.parametrize(
    ("written", "fields", "status", "reason"),
    [
        (3, several(), "passed", "3 sequences"),
        (3, several(ids=TWINS), "passed", "3 sequences"),
        (1, {}, "passed", "1 sequence"),
        (3, {}, "failed", "1 sequence came back, not 3"),
        (2, several(), "failed", "3 sequences came back, not 2"),
        ({"sequences": 3, "distinct": True}, several(), "passed", "3 sequences, distinct"),
        ({"sequences": 3, "distinct": True}, several(ids=TWINS), "failed", "sequences 0 and 2 have the same tokens"),
        ({"sequences": 3, "ordered": True}, several(-0.1, -0.2, -0.2), "passed", "3 sequences, best first"),
        (
            {"sequences": 3, "ordered": True},
            several(-0.1, -0.3, -0.2),
            "failed",
            "the scores do not descend from sequence 1 to 2",
        ),
        (
            {"sequences": 3, "ordered": True},
            several(float("nan"), -0.3, -0.4),
            "failed",
            "the scores do not descend from sequence 0 to 1",
        ),
        (
            {"sequences": 3, "ordered": True},
            several(),
            "error",
            "sampled sequences have no scores: take num_beams, or leave `ordered` out",
        ),
        (
            {"sequences": 3, "ordered": True, "distinct": True},
            several(-0.1, -0.2, -0.3),
            "passed",
            "3 sequences, distinct, best first",
        ),
    ],
)
def test_returns(completion: Any, written: Any, fields: dict[str, Any], status: str, reason: str) -> None:
    verdict = Returns.model_validate(written).judge([completion(**fields)])

    assert verdict.status == status
    assert verdict.reason.startswith(reason)


def test_what_came_back_is_shown(completion: Any) -> None:
    expectation = Returns(sequences=3, ordered=True)

    scored = expectation.judge([completion(**several(-0.3, -0.2, -0.1))])
    assert scored.details == ("0  -0.3000  'text 1'", "1  -0.2000  'text 2'", "2  -0.1000  'text 3'")
    missing = expectation.judge([completion()])
    assert missing.details == ("remedy  write num_return_sequences: 3 in the generation of this test",)


@pytest.mark.parametrize("written", [0, True, "3", {"distinct": True}])
def test_a_number_of_sequences_that_is_none_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        Returns.model_validate(written)
