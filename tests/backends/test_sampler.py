"""The sampler of the real generate(): healthy as it is, and found out with a fault planted where tokens are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from harness import backends
from harness.expectations.sampler import Sampler
from harness.inputs import Generation, Model
from harness.record import Completion, Request, Target, Text, Verdict

pytestmark = pytest.mark.slow  # thousands of draws

# Hot enough for the filters to cut, cool enough for the temperature to show.
SAMPLING = Generation(do_sample=True, temperature=3.0, top_k=60, top_p=0.95, max_new_tokens=40, seed=3)
TEXTS = ("w1 w2 w3", " ".join(f"w{number}" for number in range(5, 17)), "w40 w41")
DEFAULT = Sampler()
DRAW = torch.multinomial


@pytest.fixture(scope="module")
def backend(tiny: Any) -> Any:
    return backends.load(Target("tiny", "tiny", Model(path=str(tiny()), dtype="float32", device="cpu")))


def verdict(backend: Any, sampler: Sampler = DEFAULT, generation: Generation = SAMPLING) -> Verdict:
    """As a run does it, each batch once."""
    peers = [Request(Text(text=text), generation) for text in TEXTS]
    answers: list[Completion] = []
    asked: Sequence[Request] = sampler.needs(peers[0], peers)
    while asked:
        for seed, kind in dict.fromkeys((one.generation.seed, one.kind) for one in asked):
            answers += backend.generate([one for one in asked if (one.generation.seed, one.kind) == (seed, kind)])
        assert all(isinstance(answer, Completion) for answer in answers), answers
        known = {answer.request for answer in answers}
        asked = [one for one in sampler.then(answers) if one not in known]
    return sampler.judge_set([(sampler, answers), *((sampler, ()) for _ in peers[1:])])


def test_the_sampler_of_the_library_is_healthy(backend: Any) -> None:
    found = verdict(backend, Sampler(tokens=2000))
    assert found.status == "passed", found
    assert found.numbers["tokens"] >= 2000
    assert float(found.numbers["temperature_in_sight"]) > 0.8  # enough chance for the verdict to mean something


def colder(shares: Any, num_samples: int, **_: Any) -> Any:
    return DRAW(shares**2, num_samples)


def unfiltered(shares: Any, num_samples: int, **_: Any) -> Any:
    """As where the cut is lost: each word has some chance. Under a replay there is one word only, which stays."""
    certain = (shares == 1).any(-1, keepdim=True)
    return DRAW(torch.where(certain, shares, shares + 0.02), num_samples)


def first_of_all(shares: Any, num_samples: int, **_: Any) -> Any:
    return shares.argmax(-1, keepdim=True)


def stuck(shares: Any, num_samples: int, **_: Any) -> Any:
    torch.manual_seed(0)
    return DRAW(shares, num_samples)


def one_number_for_all_rows(shares: Any, num_samples: int, **_: Any) -> Any:
    """By the cumulated distribution, with one random number in place of one for each row."""
    return (shares.cumsum(-1) < torch.rand(1)).sum(-1, keepdim=True).clamp(max=shares.shape[-1] - 1)


def first_half(shares: Any, num_samples: int, **_: Any) -> Any:
    return (shares.cumsum(-1) < torch.rand(len(shares), 1) / 2).sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (colder, "likelier tokens are drawn than the declared distribution says"),
        (unfiltered, "cannot be drawn under temperature 3, top_k 60, top_p 0.95"),
        (first_of_all, "every token is the likeliest one"),
        (stuck, "the same as under another seed"),
        (one_number_for_all_rows, "the same as that of another row of the batch"),
        (first_half, "not evenly spread in the order of ids"),
    ],
)
def test_a_fault_where_tokens_are_drawn_is_found(backend: Any, monkeypatch: Any, fault: Any, said: str) -> None:
    monkeypatch.setattr(torch, "multinomial", fault)
    found = verdict(backend)
    assert found.status == "failed", found
    assert said in found.reason


def test_greedy_search_is_skipped(backend: Any) -> None:
    found = verdict(backend, generation=Generation(do_sample=False, max_new_tokens=5))
    assert found.status == "skipped"
