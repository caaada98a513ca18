"""The invariants: what each asks for, what it makes of the answers, and how a suite writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from harness.expectations import Expect
from harness.expectations.invariance import FILLERS
from harness.expectations.invariants import INVARIANTS, Invariants, greedy
from harness.inputs import Generation
from harness.record import Batch, Completion, Request, Text

PROMPT = Text(text="a prompt")
OWN = Generation(
    do_sample=True,
    temperature=0.7,
    num_beams=4,
    stop_strings=("x",),
    max_new_tokens=8,
    min_new_tokens=5,
    repetition_penalty=1.2,
)
REQUEST = Request(PROMPT, OWN)
PLAIN = {
    "do_sample": False,
    "num_beams": 1,
    "max_new_tokens": 8,
    "min_new_tokens": 5,
    "repetition_penalty": 1.2,
}
RAGGED = Batch((PROMPT, FILLERS[0]))


def ask(name: str, request: Request = REQUEST) -> list[Request]:
    return list(INVARIANTS[name]().needs(request, [request]))


def asked(name: str, answers: list[Completion]) -> list[Request]:
    return list(INVARIANTS[name]().then(answers))


def test_every_invariant_compares_with_plain_greedy_alone() -> None:
    assert greedy(REQUEST).generation.arguments() == PLAIN
    for name in INVARIANTS.keys() - {"one_forward", "forward_positions", "processors", "attention", "duplicate_rows"}:
        assert ask(name)[0] == greedy(REQUEST), name
    assert greedy(Request(PROMPT, Generation())).generation.max_new_tokens == 20  # the library's own default


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("no_cache", [{"use_cache": False}]),
        ("prompt_lookup", [{"prompt_lookup_num_tokens": 3}]),
        ("early_exit", [{"assistant_early_exit": 1}]),
        ("static_cache", [{"cache_implementation": "static"}] * 2),
        ("top_k_one", [{"do_sample": True, "top_k": 1, "top_p": 1.0, "temperature": 1.0}]),
    ],
)
def test_the_other_way_is_the_same_but_for_its_arguments(name: str, others: list[dict[str, Any]]) -> None:
    assert [request.generation.arguments() for request in ask(name)] == [PLAIN, *(PLAIN | other for other in others)]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("left_padding", [{}, {"layout": RAGGED}]),
        ("inferred_mask", [{}, {"layout": Batch((PROMPT,), attention_mask=False)}]),
        ("attention", [{"attention": "eager"}, {"attention": "sdpa"}, {"attention": "sdpa", "layout": RAGGED}]),
        (
            "flash_attention",
            [{}, {"attention": "flash_attention_2"}, {"attention": "flash_attention_2", "layout": RAGGED}],
        ),
        ("resumed_cache", [{}, {"resume_after": 4}]),
        (
            "duplicate_rows",
            [{"layout": Batch((PROMPT, FILLERS[0], PROMPT)), "row": row} for row in (0, 2)],
        ),
    ],
)
def test_the_other_way_is_the_same_but_for_how_it_is_run(name: str, fields: list[dict[str, Any]]) -> None:
    assert ask(name) == [greedy(REQUEST).replace(**changes) for changes in fields]


def test_a_static_cache_is_tried_alone_and_padded() -> None:
    assert [request.layout for request in ask("static_cache")] == ["alone", "alone", RAGGED]


def test_left_padding_shares_one_batch_with_the_prompts_of_the_test() -> None:
    peers = [REQUEST, REQUEST.replace(prompt=Text(text="another"))]
    layouts = {INVARIANTS["left_padding"]().needs(peer, peers)[1].layout for peer in peers}

    assert layouts == {Batch((PROMPT, Text(text="another"), FILLERS[0]))}


def test_a_resumed_call_has_a_first_half_of_a_token_at_least() -> None:
    assert ask("resumed_cache", Request(PROMPT, Generation(max_new_tokens=1)))[1].resume_after == 1


def test_the_pad_token_is_the_one_that_the_prompt_alone_emits_first(completion: Callable[..., Completion]) -> None:
    for name in ("any_pad_token", "processors"):
        (request,) = ask(name)
        alone = completion((17, 6), request=request)
        (padded,) = asked(name, [alone])

        assert padded == request.replace(layout=Batch((PROMPT, FILLERS[0]), pad_token_id=17))
        assert asked(name, [alone, completion(request=padded)]) == []


def test_processors_are_put_to_work_where_the_test_has_none() -> None:
    (own,) = ask("processors")
    (added,) = ask("processors", Request(PROMPT, Generation(max_new_tokens=8)))

    assert own.generation.repetition_penalty == 1.2
    assert added.generation.repetition_penalty == 1.8


def test_one_forward_scores_what_was_generated_without_any_processor(completion: Callable[..., Completion]) -> None:
    (request,) = ask("one_forward")
    assert request.generation.arguments() == PLAIN | {
        "min_new_tokens": 0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }
    alone = completion((5, 6, 1), request=request)

    assert asked("one_forward", [alone]) == [request.replace(kind="score", continuation=(5, 6, 1))]
    assert asked("one_forward", [alone, alone]) == []


def test_forward_positions_scores_the_first_token_in_a_padded_batch() -> None:
    alone, padded = ask("forward_positions")

    assert alone.generation.max_new_tokens == 1
    assert padded == alone.replace(kind="score", layout=RAGGED)
    assert not padded.position_ids


def test_a_prefix_is_gone_on_with_for_what_is_left(completion: Callable[..., Completion]) -> None:
    (request,) = ask("prefix")
    alone = completion((5, 6, 7, 8, 1), request=request, prompt_ids=(9, 10))
    (rest,) = asked("prefix", [alone])

    assert rest.prompt == Text(ids=(9, 10, 5, 6))
    assert rest.generation.arguments() == PLAIN | {"max_new_tokens": 6, "min_new_tokens": 3}
    assert asked("prefix", [alone, completion(request=rest)]) == []


def test_the_second_half_is_what_going_on_must_give(completion: Callable[..., Completion]) -> None:
    prefix = INVARIANTS["prefix"]()
    alone = completion((5, 6, 7, 8, 1), margins=(9, 9, 9, 0.2, 9), precision="bfloat16")

    right = prefix.judge([alone, completion((7, 8, 1), precision="bfloat16")])
    wrong = prefix.judge([alone, completion((6, 7, 8), precision="bfloat16")])
    # 2 ulp at logit 27 are 0.25: the margin that counts is that of the fourth token, the second of the second half.
    rounded = prefix.judge([alone, completion((7, 4, 1), margins=(9, 0.2, 9), precision="bfloat16")])

    assert (right.status, right.reason.split(" alone")[0]) == ("passed", "the same 3 tokens")
    assert (wrong.status, wrong.numbers["index"]) == ("failed", 0)
    assert (rounded.status, rounded.numbers["index"]) == ("passed", 1)
    assert prefix.suspects([alone, completion((6, 7, 8))]) == ()


def test_an_output_of_one_token_has_no_second_half(completion: Callable[..., Completion]) -> None:
    alone = completion((1,))

    assert asked("prefix", [alone]) == []
    assert INVARIANTS["prefix"]().judge([alone]).status == "skipped"


# left_padding has its words from padding_invariant; prefix compares halves, above.
WAYS = {name: kind.others for name, kind in INVARIANTS.items() if getattr(kind, "others", ()) and name != "prefix"}


@pytest.mark.parametrize("name", WAYS)
def test_the_same_tokens_pass_and_others_fail_in_the_words_of_the_way(
    completion: Callable[..., Completion], name: str
) -> None:
    invariant, same = INVARIANTS[name](), completion((5, 6, 1))
    for place, how in enumerate(WAYS[name]):
        answers = [same, *(completion((5, 8 if place == other else 6, 1)) for other in range(len(WAYS[name])))]
        verdict = invariant.judge(answers)
        assert verdict.status == "failed"
        assert verdict.reason.startswith(f"{how}, the tokens differ from those alone at token 1: margin 5 nats")
    assert invariant.judge([same] * (1 + len(WAYS[name]))).status == "passed"


def test_the_failing_way_is_the_one_that_is_looked_into(completion: Callable[..., Completion]) -> None:
    invariant, requests = INVARIANTS["static_cache"](), ask("static_cache")
    answers = [
        completion(ids, request=request, attention="eager", pads=pads, padding="left" if pads else "")
        for ids, request, pads in zip([(5, 6, 1), (5, 6, 1), (5, 8, 1)], requests, (0, 0, 3), strict=True)
    ]

    assert "left-padded batch" in invariant.judge(answers).reason
    assert invariant.suspects(answers)[0].cause.startswith("the pad token")


def test_a_flip_by_rounding_is_told_even_when_another_way_agrees(completion: Callable[..., Completion]) -> None:
    near = {"margins": 0.1, "precision": "bfloat16"}
    same, rounded = completion((5, 6), **near), completion((5, 8), **near)
    changed = completion((5, 8), margins=9.0, precision="bfloat16")
    judge = INVARIANTS["static_cache"]().judge

    assert judge([same, same, rounded]).status == "passed"
    assert "by rounding alone" in judge([same, same, rounded]).reason
    assert judge([same, rounded, changed]).status == "failed"


@pytest.mark.parametrize(
    ("cache", "status"), [("StaticCache", "passed"), ("EncoderDecoderCache", "passed"), ("DynamicCache", "error")]
)
def test_a_static_cache_that_was_not_used_proves_nothing(
    completion: Callable[..., Completion], cache: str, status: str
) -> None:
    answers = [completion(), completion(cache=cache), completion(cache=cache)]
    verdict = INVARIANTS["static_cache"]().judge(answers)

    assert verdict.status == status
    if status == "error":
        assert verdict.reason == "a static cache was asked for, and DynamicCache was used"


def test_speculative_decoding_may_not_give_a_token_more(completion: Callable[..., Completion]) -> None:
    short = completion((5, 6, 7), finish="length")
    verdict = INVARIANTS["prompt_lookup"]().judge([short, completion((5, 6, 7, 8), finish="length", steps=())])

    assert verdict.status == "failed"
    assert verdict.numbers["index"] == 3


def expected(value: Any) -> dict[str, Any]:
    return Expect(invariants=value).expectations()


def test_all_is_every_invariant_but_the_one_for_scoring_code() -> None:
    assert expected("all") == expected(True) == expected({})
    assert list(expected("all")) == [name for name in INVARIANTS if name != "forward_positions"]


def test_some_by_name() -> None:
    assert list(expected("no_cache")) == ["no_cache"]
    assert list(expected(["prefix", "forward_positions"])) == ["prefix", "forward_positions"]
    assert list(expected({"only": ["prefix"]})) == ["prefix"]


def test_a_known_exception_is_skipped_with_its_reason() -> None:
    written = expected({"only": ["no_cache", "prefix"], "skip": {"prefix": "the cache of this model is lossy"}})
    excepted = written["prefix"]

    assert list(written) == ["no_cache", "prefix"]
    assert type(written["no_cache"]) is INVARIANTS["no_cache"]
    assert excepted.needs(REQUEST, [REQUEST]) == ()
    assert (excepted.judge([]).status, excepted.judge([]).reason) == ("skipped", "the cache of this model is lossy")


@pytest.mark.parametrize(
    "value", ["no_cash", ["no_cash"], {"only": ["no_cash"]}, {"skip": {"no_cash": "why"}}], ids=str
)
def test_an_unknown_name_is_answered_with_those_there_are(value: Any) -> None:
    with pytest.raises(
        ValidationError, match="no invariant is called 'no_cash'; there are: all, left_padding, any_pad"
    ):
        Invariants.model_validate(value)


def test_written_twice_it_is_one() -> None:
    written = {"only": ["prefix"], "skip": {"prefix": "a reason"}}

    assert hash(Invariants.model_validate(written)) == hash(Invariants.model_validate(written))


@pytest.mark.parametrize("name", sorted(INVARIANTS))
def test_each_says_what_it_catches_and_what_it_is_not_for(name: str) -> None:
    kind = INVARIANTS[name]

    assert kind.catches
    assert "dynamic_rope" in kind.not_for
    decoder_only = {"one_forward", "resumed_cache", "prefix", "forward_positions"}
    assert ("encoder_decoder" in kind.not_for) == (name in decoder_only)


def test_duplicates_are_compared_in_one_batch(completion: Callable[..., Completion]) -> None:
    first, second = ask("duplicate_rows")
    answer = completion(request=first, batch_size=3)
    verdict = INVARIANTS["duplicate_rows"]().judge([answer, dataclasses.replace(answer, request=second)])

    assert (verdict.status, verdict.numbers) == ("passed", {"batch_size": 3})
