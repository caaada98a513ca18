"""What `sampler` asks for, and how it words what it finds; the statistics themselves stand in tests/test_sampler.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from harness.expectations.sampler import MOST_SEEDS, Sampler
from harness.inputs import Generation
from harness.record import Batch, Completion, Distributions, Request, Text, Verdict

WORDS = 20
SAMPLING = Generation(do_sample=True, max_new_tokens=20, seed=5)
PEERS = [Request(Text(text=text), SAMPLING) for text in ("one", "two words", "three words here")]
Draw = Callable[[Request, Any], Sequence[int]]  # the answer to a request, with a generator of its own


def logits_after(prompt: Text, earlier: Sequence[int]) -> Any:
    """A model: what comes next depends on the prompt and the last word."""
    last = earlier[-1] if earlier else len(prompt.last)
    logits = np.random.default_rng((len(prompt.last), last)).normal(size=WORDS).astype(np.float32) * 2
    logits[0] -= 9  # the end, which nothing here runs into
    return logits


def of_its_own(request: Request) -> Any:
    return np.random.default_rng((request.generation.seed, request.row or 0, 77))


def drawn(request: Request, rng: Any, temperature: float = 1.0, length: int | None = None) -> tuple[int, ...]:
    ids: list[int] = []
    for _ in range(length or request.generation.max_new_tokens or 0):
        logits = logits_after(request.prompt, ids).astype(np.float64)
        weights = np.exp((logits - logits.max()) / temperature)
        ids.append(int(rng.choice(WORDS, p=weights / weights.sum())))
    return tuple(ids)


def healthy(request: Request, rng: Any) -> tuple[int, ...]:
    return drawn(request, rng)


def colder(request: Request, rng: Any) -> tuple[int, ...]:
    return drawn(request, rng, temperature=0.6)


def warmer(request: Request, rng: Any) -> tuple[int, ...]:
    return drawn(request, rng, temperature=1.8)


def greedy(request: Request, rng: Any) -> tuple[int, ...]:
    return drawn(request, rng, temperature=1e-3)


def one_seed(request: Request, rng: Any) -> tuple[int, ...]:
    return drawn(request, np.random.default_rng(request.row))


def one_row(request: Request, rng: Any) -> tuple[int, ...]:
    return drawn(request, np.random.default_rng(request.generation.seed))


class Model:
    """Answers as a backend does, and counts what it was asked."""

    def __init__(self, completion: Any, folder: Path, draw: Draw, keep: int = WORDS, **config: Any) -> None:
        self.completion, self.folder, self.draw, self.keep = completion, folder, draw, keep
        self.config = {"do_sample": True, "eos_token_id": 0, "temperature": 1.0} | config
        self.asked: list[Request] = []
        self.precision = "float32"

    def __call__(self, request: Request) -> Completion:
        self.asked.append(request)
        if request.kind == "replay":
            ids, kept = request.continuation, self._distributions(request)
        else:
            ids, kept = self.draw(request, of_its_own(request)), None
        return self.completion(
            ids, request=request, generation_config=self.config, distributions=kept, precision=self.precision
        )

    def _distributions(self, request: Request) -> Distributions:
        rows = []
        for step in range(len(request.continuation)):
            raw = logits_after(request.prompt, request.continuation[:step])
            processed = np.where(raw >= np.sort(raw)[-self.keep], raw, -np.inf).astype(np.float32)
            rows += [raw, processed]
        path = self.folder / f"{request.id}.logits"
        path.write_bytes(np.stack(rows).tobytes())
        return Distributions(path, len(request.continuation), WORDS)


def verdict(model: Model, sampler: Sampler, peers: Sequence[Request] = PEERS) -> Verdict:
    """As a run does it: every prompt asks, and is asked again until it wants no more."""
    parts = []
    for peer in peers:
        answers = [model(request) for request in sampler.needs(peer, peers)]
        known = {answer.request for answer in answers}
        while more := [request for request in sampler.then(answers) if request not in known]:
            answers += [model(request) for request in more]
            known |= set(more)
        parts.append((sampler, answers))
    return sampler.judge_set(parts)


@pytest.fixture
def model(completion: Any, tmp_path: Path) -> Callable[..., Model]:
    return lambda draw, **changes: Model(completion, tmp_path, draw, **changes)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_the_first_prompt_asks_for_one_batch_under_each_seed() -> None:
    asked = Sampler().needs(PEERS[0], PEERS)
    one, two, three = (peer.prompt for peer in PEERS)
    assert {request.layout for request in asked} == {Batch((one, two, three, one, two, three))}
    assert [request.row for request in asked[:6]] == [0, 1, 2, 3, 4, 5]
    assert [request.prompt for request in asked[:6]] == [one, two, three, one, two, three]
    # 500 tokens of 6 rows with 20 each: five seeds.
    assert sorted({request.generation.seed for request in asked}) == [5, 6, 7, 8, 9]
    assert not Sampler().needs(PEERS[1], PEERS)
    assert not Sampler().then(())


def test_of_many_prompts_the_first_four_are_drawn_and_twice() -> None:
    peers = [
        Request(Text(text=f"p{number}"), SAMPLING.model_copy(update={"max_new_tokens": 200})) for number in range(9)
    ]
    asked = Sampler().needs(peers[0], peers)
    assert isinstance(asked[0].layout, Batch)
    assert asked[0].layout.rows == tuple(peer.prompt for peer in peers[:4]) * 2
    assert len({request.generation.seed for request in asked}) == 2  # fewer would not show what a seed does


def test_only_as_many_tokens_are_led_as_are_wanted(model: Any) -> None:
    asked = model(healthy)
    verdict(asked, Sampler())
    led = [request for request in asked.asked if request.kind == "replay"]
    assert len(led) == 30
    assert sum(len(request.continuation) for request in led) == 510  # 30 sequences of 17
    assert all(request.layout == led[0].layout for request in led)  # in the very same batch


def test_a_forced_end_is_left_where_it_is(model: Any) -> None:
    asked = model(healthy, forced_eos_token_id=0)
    verdict(asked, Sampler())
    assert {len(request.continuation) for request in asked.asked if request.kind == "replay"} == {20}


def test_short_texts_are_drawn_under_more_seeds(model: Any) -> None:
    asked = model(lambda request, rng: drawn(request, rng, length=10))
    found = verdict(asked, Sampler())
    assert found.status == "passed"
    assert found.numbers["seeds"] == 9  # 9 x 6 x 10 = 540
    assert found.numbers["tokens"] == 540


def test_too_few_tokens_are_no_verdict(model: Any) -> None:
    peers = [Request(Text(text="p"), SAMPLING.model_copy(update={"max_new_tokens": 50}))]
    found = verdict(model(lambda request, rng: drawn(request, rng, length=1)), Sampler(tokens=600), peers)
    assert found.status == "error"
    assert found.reason.startswith(f"only {8 * MOST_SEEDS} tokens under {MOST_SEEDS} seeds, 600 wanted")
    assert found.details[0].startswith("remedy  raise max_new_tokens (50)")


# --- what is found ---------------------------------------------------------------------------------------------------


def test_a_healthy_sampler_passes_and_says_what_would_have_shown(model: Any) -> None:
    found = verdict(model(healthy), Sampler())
    assert found.status == "passed", found.reason
    assert found.reason.startswith("510 tokens under 5 seeds are drawn as declared: smallest of 5 corrected p-values")
    assert 0.7 < float(found.numbers["temperature_in_sight"]) < 0.95
    assert found.numbers["cut_off"] == 0


@pytest.mark.parametrize(
    ("draw", "reason", "look"),
    [
        (
            colder,
            "likelier tokens are drawn than the declared distribution says (surprisal z +",
            "fits    temperature 0.",
        ),
        (
            warmer,
            "less likely tokens are drawn than the declared distribution says (surprisal z -",
            "fits    temperature 1.",
        ),
        (greedy, "every token is the likeliest one: it does not sample", "look at  do_sample"),
        (one_seed, "24 of 24 texts are the same as under another seed", "look at  the generator: it is stuck"),
        (
            one_row,
            "15 of 15 texts are the same as that of another row of the batch",
            "look at  the generator: every row",
        ),
    ],
)
def test_a_broken_sampler_fails_and_is_told_apart(model: Any, draw: Draw, reason: str, look: str) -> None:
    found = verdict(model(draw), Sampler())
    assert found.status == "failed"
    assert found.reason.startswith(reason)
    assert found.reason.endswith("over 510 tokens under 5 seeds; a healthy sampler fails in 0.10% of runs at most")
    assert found.details[0].startswith(look)


def test_the_temperature_that_fits_is_the_one_that_was_at_work(model: Any) -> None:
    """Declared as 0.8 (the processed distribution has it in), drawn with 0.6 of that."""
    found = verdict(model(colder, temperature=0.8), Sampler())
    fits = float(found.details[0].split("temperature ")[1].split(",")[0])
    assert fits == pytest.approx(0.48, abs=0.06)
    assert found.details[0].endswith("where 0.8 is declared")


def test_a_generator_that_is_biased_is_told(model: Any) -> None:
    def first_half(request: Request, rng: Any) -> tuple[int, ...]:
        ids: list[int] = []
        for _ in range(20):
            weights = np.exp(logits_after(request.prompt, ids).astype(np.float64))
            ids.append(int((rng.random() / 2 > (weights / weights.sum()).cumsum()).sum()))
        return tuple(ids)

    found = verdict(model(first_half), Sampler())
    assert found.reason.startswith("the numbers that it draws with are not evenly spread in the order of ids")
    assert found.numbers["p_by_id"] < 1e-12


def test_a_token_that_was_cut_off_is_certain(model: Any) -> None:
    found = verdict(model(healthy, keep=4, top_k=4), Sampler())
    assert found.status == "failed"
    assert "of 510 tokens cannot be drawn under temperature 1, top_k 4" in found.reason
    rank = int(found.numbers["rank"])
    assert 4 < rank <= WORDS
    assert found.details[0].endswith(f"the {rank}. of the raw logits, where 4 could be drawn")


@pytest.mark.parametrize(("precision", "cut_off"), [("float32", True), ("bfloat16", False)])
def test_at_the_edge_of_a_cut_rounding_is_no_proof(
    completion: Any, tmp_path: Path, precision: str, cut_off: bool
) -> None:
    """Logits near 30, where two units in the last place of bfloat16 are 0.25: 29.9 may have been kept."""
    request = Request(Text(text="p"), SAMPLING, Batch((Text(text="p"),)), row=0)
    raw = np.array([30.5, 30.0, 29.9, 0.0], np.float32)
    path = tmp_path / "logits"
    path.write_bytes(np.stack([raw, np.where(raw >= 30, raw, -np.inf).astype(np.float32)] * 3).tobytes())
    kept = Distributions(path, 3, 4)
    fields: dict[str, Any] = {"generation_config": {"do_sample": True, "top_k": 2}, "precision": precision}
    led = completion(
        (0, 1, 2), request=request.replace(kind="replay", continuation=(0, 1, 2)), distributions=kept, **fields
    )
    found = Sampler().judge([completion((0, 1, 2), request=request, **fields), led])
    assert found.numbers["cut_off"] == int(cut_off)
    assert found.status == ("failed" if cut_off else "error")  # three tokens are too few to pass


def test_greedy_search_is_skipped_before_anything_is_led(model: Any) -> None:
    asked = model(greedy, do_sample=False)
    found = verdict(asked, Sampler())
    assert found.status == "skipped"
    assert all(request.kind == "generate" for request in asked.asked)


def test_where_one_token_is_left_to_choose_nothing_is_told(model: Any) -> None:
    found = verdict(model(greedy, keep=1, top_k=1), Sampler())
    assert found.status == "skipped"
    assert found.reason.startswith("each of 510 tokens was the only one that could be drawn")


def test_the_same_answers_give_the_same_verdict(model: Any) -> None:
    assert verdict(model(healthy), Sampler()) == verdict(model(healthy), Sampler())


@pytest.mark.parametrize("wrong", [{"tokens": 50}, {"tokens": 100_000}, {"alpha": 0}, {"alpha": 0.5}, {"seeds": 3}])
def test_what_cannot_be_asked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sampler.model_validate(wrong)


def test_it_may_be_written_as_true() -> None:
    assert Sampler.model_validate(True) == Sampler(tokens=500, alpha=0.001)
