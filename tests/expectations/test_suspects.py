"""The ladder of suspects: which are tried for a pair that differs, in which order, and how short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.expectations.shorthand import Suspect
from harness.expectations.suspects import neutral, suspects
from harness.inputs import Generation
from harness.record import Batch, Completion, Request, Text

PROMPT, NEIGHBOUR = Text(text="a prompt"), Text(text="a neighbour")
GENERATION = Generation(do_sample=False, max_new_tokens=5)
ALONE = Request(PROMPT, GENERATION, "alone")
LEFT = Batch((PROMPT, NEIGHBOUR))

Pair = Callable[..., tuple[Completion, Completion]]


@pytest.fixture
def pair(completion: Callable[..., Completion]) -> Pair:
    """Alone, and in another way, which differs at the third of five tokens."""

    def build(request: Request = ALONE, reference: Request = ALONE, **other: Any) -> tuple[Completion, Completion]:
        config = {"generation_config": {"eos_token_id": 1} | other.pop("config", {})}
        both = config | {name: other.pop(name) for name in ("attention", "precision") if name in other}
        return (
            completion((5, 6, 7, 8, 1), request=reference, **both),
            completion((5, 6, 9, 8, 1), request=request, **both, **other),
        )

    return build


def named(pair: tuple[Completion, Completion]) -> dict[str, Suspect]:
    """The suspects by the first words of their causes."""
    return {suspect.cause.split(":")[0]: suspect for suspect in suspects(*pair)}


def padded(layout: Batch = LEFT, **fields: Any) -> dict[str, Any]:
    return {"request": ALONE.replace(layout=layout), "pads": 3, "padding": "left", **fields}


def test_where_nothing_differs_nothing_is_suspected(completion: Callable[..., Completion]) -> None:
    assert suspects(completion(), completion()) == []


def test_only_the_cache_is_suspected_of_a_plain_pair(pair: Pair) -> None:
    (suspect,) = suspects(*pair(ALONE.replace(generation=GENERATION.model_copy(update={"use_cache": True}))))

    assert suspect.cause == "the key-value cache: with use_cache: false on both sides the tokens are the same"
    assert (suspect.reference.generation.use_cache, suspect.other.generation.use_cache) == (False, False)


def test_the_ladder_in_its_order(pair: Pair) -> None:
    worst = padded(
        Batch(LEFT.rows, "shipped", False),
        padding="right",
        attention="sdpa",
        precision="bfloat16",
        config={"do_sample": True, "repetition_penalty": 1.2},
    )
    right = [suspect.cause.split(":")[0] for suspect in suspects(*pair(**worst))]
    left = [suspect.cause.split(":")[0] for suspect in suspects(*pair(**(worst | {"padding": "left"})))]

    assert right == [
        "sampling",
        "right padding",
        "the attention mask is missing",
        "the pad token",
        "a logits processor",
        "rounding of bfloat16",
        "the key-value cache",
        "the attention implementation",
    ]
    assert left == ["sampling", *right[2:], "position ids", "the model's own code"]


def test_every_suspect_is_as_short_as_the_difference_allows(pair: Pair) -> None:
    generation = GENERATION.model_copy(update={"min_new_tokens": 4})
    reference = ALONE.replace(generation=generation)
    resumed = reference.replace(resume_after=4)
    scored = reference.replace(kind="score", continuation=(5, 6, 7, 8, 1))

    for request in (resumed, scored):
        for suspect in suspects(*pair(request, reference, config={"repetition_penalty": 2.0}, attention="sdpa")):
            for side in (suspect.reference, suspect.other):
                assert side.generation.max_new_tokens == 3
                assert side.generation.min_new_tokens in (3, 0)
            assert suspect.other.resume_after == (2 if request is resumed else 0)
            assert suspect.other.continuation == ((5, 6, 7) if request is scored else ())


@pytest.mark.parametrize("drafting", ["prompt_lookup_num_tokens", "assistant_early_exit"])
def test_a_draft_is_not_shortened_for_it_ends_at_the_limit(pair: Pair, drafting: str) -> None:
    drafted = ALONE.replace(generation=GENERATION.model_copy(update={drafting: 1}))

    for suspect in suspects(*pair(drafted, attention="sdpa")):
        assert suspect.other.generation.max_new_tokens == 5


def test_nothing_is_shortened_where_the_last_token_is_forced(pair: Pair) -> None:
    (suspect,) = suspects(*pair(config={"forced_eos_token_id": 1}))

    assert suspect.other.generation.max_new_tokens == 5


def test_sampling_is_switched_off_on_both_sides(pair: Pair) -> None:
    unsaid = Generation(max_new_tokens=5)
    sampled = Generation(do_sample=True, temperature=0.5, top_k=5, top_p=0.9, min_p=0.1, num_return_sequences=2)

    for generation in (unsaid, sampled):
        request = ALONE.replace(generation=generation)
        suspect = named(pair(request, request, config={"do_sample": True}))["sampling"]
        assert suspect.other.generation == suspect.reference.generation
        assert suspect.other.generation.arguments() == {"do_sample": False, "max_new_tokens": 3}


def test_sampling_is_no_suspect_where_one_side_alone_samples(pair: Pair) -> None:
    sampled = ALONE.replace(generation=Generation(do_sample=True, top_k=1, max_new_tokens=5))

    assert "sampling" not in named(pair(sampled, config={"do_sample": True}))


def test_right_padding_is_told_by_the_side_that_was_used(pair: Pair) -> None:
    shipped = Batch(LEFT.rows, "shipped", attention_mask=False, pad_token_id=9)
    suspect = named(pair(**padded(shipped, padding="right")))["right padding"]

    assert suspect.other.layout == Batch(LEFT.rows, "left", True, 9)
    assert suspect.reference.layout == "alone"
    assert "Set padding_side to left" in suspect.cause
    assert "right padding" not in named(pair(**padded(shipped)))


def test_a_mask_that_was_left_out_is_passed(pair: Pair) -> None:
    suspects_without = suspects(*pair(**padded(Batch(LEFT.rows, attention_mask=False))))

    assert suspects_without[0].cause.startswith("the attention mask is missing")
    assert suspects_without[0].other.layout == LEFT
    assert "the attention mask is missing" not in named(pair(**padded()))


def test_the_other_pad_token_is_one_that_nobody_uses(pair: Pair) -> None:
    reference, other = pair(**padded(Batch(LEFT.rows, pad_token_id=5), config={"eos_token_id": [3, 4]}))
    (suspect, *_) = suspects(reference, other)

    assert suspect.cause.startswith("the pad token: padded with another id (10)")  # 3 to 9 are taken
    assert suspect.other.layout == Batch(LEFT.rows, pad_token_id=10)
    assert "the pad token" not in named(pair(ALONE.replace(layout=LEFT)))  # the longest row has no pads


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"no_repeat_ngram_size": 3, "min_new_tokens": 2}, "no_repeat_ngram_size and min_new_tokens"),
    ],
)
def test_processors_at_work_are_named_and_switched_off(pair: Pair, config: dict[str, Any], names: str) -> None:
    suspect = named(pair(config=config))["a logits processor"]

    assert suspect.cause == f"a logits processor: without {names} the tokens are the same"
    assert suspect.other.generation == suspect.reference.generation
    assert suspect.other.generation.arguments() == {
        "do_sample": False,
        "max_new_tokens": 3,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "min_new_tokens": 0,
    }


def test_processors_that_do_nothing_are_no_suspects(pair: Pair) -> None:
    idle = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": None}

    assert "a logits processor" not in named(pair(config=idle))


def test_a_static_cache_is_left_out_and_so_is_that_of_the_reference(pair: Pair) -> None:
    static = ALONE.replace(generation=GENERATION.model_copy(update={"cache_implementation": "static"}))
    scored = ALONE.replace(kind="score", continuation=(5, 6, 7, 8, 1))

    suspect = named(pair(static))["the key-value cache"]
    assert suspect.other == suspect.reference  # the cache was all that told them apart
    assert suspect.other.generation.arguments() == {"do_sample": False, "max_new_tokens": 3, "use_cache": False}
    assert named(pair(scored))["the key-value cache"].reference.generation.use_cache is False


def test_the_cache_is_no_suspect_where_there_is_none_or_where_it_is_the_point(pair: Pair) -> None:
    uncached = ALONE.replace(generation=GENERATION.model_copy(update={"use_cache": False}))

    assert suspects(*pair(uncached)) == []
    assert suspects(*pair(ALONE.replace(resume_after=2))) == []


def test_attention_is_compared_with_eager_on_both_sides(pair: Pair) -> None:
    suspect = named(pair(attention="sdpa"))["the attention implementation"]

    assert (suspect.reference.attention, suspect.other.attention) == ("eager", "eager")
    assert "with eager instead of sdpa" in suspect.cause
    assert "the attention implementation" not in named(pair(attention="eager"))
    assert "the attention implementation" not in named(pair(attention=""))


def test_position_ids_are_passed_to_a_forward_pass_over_the_reference(pair: Pair) -> None:
    suspect = named(pair(**padded()))["position ids"]

    assert suspect.reference == ALONE.replace(generation=GENERATION.model_copy(update={"max_new_tokens": 3}))
    assert (suspect.other.kind, suspect.other.position_ids, suspect.other.layout) == ("score", True, LEFT)
    assert suspect.other.continuation == (5, 6, 7)


def test_last_of_all_the_pads_are_put_on_the_right_of_a_forward_pass(pair: Pair) -> None:
    last = suspects(*pair(**padded()))[-1]

    assert "takes pads on the left for text" in last.cause
    assert (last.other.kind, last.other.layout) == ("score", Batch(LEFT.rows, "right"))
    assert last.other.continuation == (5, 6, 7)


def test_rounding_is_suspected_below_float32_alone(pair: Pair) -> None:
    suspect = named(pair(precision="bfloat16"))["rounding of bfloat16"]

    assert suspect.reference.float32
    assert suspect.other.float32
    assert not any(cause.startswith("rounding") for cause in named(pair(precision="float32")))


def test_neutral_is_plain_greedy_of_the_same_length() -> None:
    own = Generation(do_sample=True, top_k=5, repetition_penalty=2.0, min_new_tokens=3, max_new_tokens=7, seed=4)
    plain = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}

    assert neutral(own).arguments() == plain | {"min_new_tokens": 0, "max_new_tokens": 7}
    assert neutral(Generation()).max_new_tokens == 20
