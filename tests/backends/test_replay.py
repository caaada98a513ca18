"""generate() led along a given path, and the likelihood of texts, against the model called by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import backends
from harness.backends import replay, scoring
from harness.inputs import Generation, Model
from harness.record import Batch, Completion, Failure, Request, Target, Text

GREEDY = Generation(do_sample=False, max_new_tokens=6)
SHORT, LONG = Text(text="w1 w2 w3"), Text(text=" ".join(f"w{n}" for n in range(5, 17)))
PATH = (20, 30, 40, 41)
EOS = 1


@pytest.fixture(scope="module")
def load(tiny: Any) -> Callable[..., Any]:
    loaded: dict[str, Any] = {}

    def build(architecture: str = "llama") -> Any:
        if architecture not in loaded:
            model = Model(path=str(tiny(architecture)), dtype="float32", device="cpu")
            loaded[architecture] = backends.load(Target("tiny", "tiny", model))
        return loaded[architecture]

    return build


def answered(backend: Any, *requests: Request) -> list[Completion]:
    answers = backend.generate(requests)
    assert all(isinstance(answer, Completion) for answer in answers), answers
    return answers


def logits_by_hand(backend: Any, text: Text, path: tuple[int, ...]) -> Any:
    """One forward pass over prompt and path: the logits from which each token of the path is chosen."""
    prompt = list(backend.tokenizer(text.text)["input_ids"])
    with torch.inference_mode():
        logits = backend.model(input_ids=torch.tensor([prompt + list(path[:-1])]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 :].numpy()


def assert_close(kept: Any, expected: Any) -> None:
    assert kept.shape == expected.shape
    assert np.abs(kept - expected).max() < 1e-3  # logits of these wide models go to 1000; tokens differ by far more


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_the_path_is_followed_and_the_raw_logits_are_those_of_the_model(load: Any, architecture: str) -> None:
    backend = load(architecture)
    (done,) = answered(backend, Request(SHORT, GREEDY, kind="replay", continuation=PATH))
    assert done.ids == PATH
    expected = logits_by_hand(backend, SHORT, PATH)
    assert done.distributions is not None
    assert done.distributions.steps == len(PATH)
    for step, row in enumerate(expected):
        assert_close(done.distributions.raw(step), row)
        assert np.array_equal(done.distributions.processed(step), done.distributions.raw(step))
        assert done.steps[step].logprob == pytest.approx(float(torch.tensor(row).log_softmax(-1)[PATH[step]]), abs=1e-3)


def test_what_nothing_processes_lies_on_the_disk_once(load: Any) -> None:
    (done,) = answered(load(), Request(SHORT, GREEDY, kind="replay", continuation=PATH))
    assert done.distributions.path.stat().st_size == 4 * len(PATH) * done.distributions.vocabulary


def test_led_along_its_own_path_a_model_would_have_said_the_same(load: Any) -> None:
    backend = load()
    (free,) = answered(backend, Request(LONG, GREEDY))
    (led,) = answered(backend, Request(LONG, GREEDY, kind="replay", continuation=free.ids))
    assert led.ids == free.ids
    assert [step.top_ids[0] for step in led.steps] == list(free.ids)


def test_rows_of_one_batch_follow_paths_of_different_lengths(load: Any) -> None:
    backend = load()
    paths = {SHORT: (20, 30, EOS), LONG: (50, 51, 52, 53, 54, 55)}
    done = answered(backend, *(Request(text, GREEDY, kind="replay", continuation=path) for text, path in paths.items()))
    for completion, (text, path) in zip(done, paths.items(), strict=True):
        assert completion.ids == path
        assert completion.batch_size == 2
        assert completion.distributions.steps == len(path)
        for step, row in enumerate(logits_by_hand(backend, text, path)):
            assert_close(completion.distributions.raw(step), row)


def test_a_path_without_end_ends_where_it_ends(load: Any) -> None:
    """Nothing is made up behind it, and no row waits for another's limit."""
    short, long = answered(
        load(),
        Request(SHORT, GREEDY, kind="replay", continuation=(20, 30)),
        Request(LONG, GREEDY, kind="replay", continuation=(50, 51, 52, 53)),
    )
    assert short.ids[:2] == (20, 30)
    assert short.distributions.steps == 2
    assert long.distributions.steps == 4


def test_the_path_may_be_longer_than_the_limit(load: Any) -> None:
    path = tuple(range(20, 40))
    (done,) = answered(load(), Request(SHORT, GREEDY, kind="replay", continuation=path))
    assert done.ids == path


def test_processed_is_what_penalty_temperature_and_top_k_leave(load: Any) -> None:
    backend = load()
    generation = Generation(do_sample=True, temperature=0.5, top_k=5, repetition_penalty=1.5, max_new_tokens=6)
    (done,) = answered(backend, Request(SHORT, generation, kind="replay", continuation=PATH))
    assert done.ids == PATH  # of which sampling with top_k 5 would hardly choose one
    seen = set(backend.tokenizer(SHORT.text)["input_ids"])
    for step, token in enumerate(PATH):
        raw = done.distributions.raw(step).astype(np.float64)
        penalised = raw.copy()
        for one in seen:
            penalised[one] = raw[one] / 1.5 if raw[one] > 0 else raw[one] * 1.5
        expected = penalised / 0.5
        expected[expected < np.sort(expected)[-5]] = -np.inf
        processed = done.distributions.processed(step)
        assert np.array_equal(np.isfinite(processed), np.isfinite(expected))
        kept = np.isfinite(expected)
        assert processed[kept] == pytest.approx(expected[kept], rel=1e-5)
        seen.add(token)


def test_neighbours_in_a_fixed_batch_go_their_own_way(load: Any) -> None:
    backend = load()
    batch = Batch((SHORT, LONG))
    (led,) = answered(backend, Request(SHORT, GREEDY, batch, kind="replay", continuation=PATH, whole=False))
    assert (led.ids, led.batch_size, led.pads) == (PATH, 2, 9)
    for step, row in zip(led.steps, logits_by_hand(backend, SHORT, PATH), strict=True):
        values, ids = torch.tensor(row).log_softmax(-1).topk(20)
        assert list(step.top_ids) == ids.tolist()
        assert list(step.top_logprobs) == pytest.approx(values.tolist(), abs=1e-3)
    pair = [Request(text, GREEDY, batch, kind="replay", continuation=PATH, whole=False) for text in (SHORT, LONG)]
    assert [done.ids for done in answered(backend, *pair)] == [PATH, PATH]


def test_only_the_top_of_the_distributions_is_kept_where_the_whole_is_not_asked_for(load: Any) -> None:
    backend = load()
    request = Request(SHORT, GREEDY, kind="replay", continuation=PATH, whole=False)
    (plain,) = answered(backend, request)
    assert (plain.distributions, plain.processed_steps) == (None, ())
    penalty = GREEDY.model_copy(update={"repetition_penalty": 1.5})
    (penalised,) = answered(backend, request.replace(generation=penalty))
    (whole,) = answered(backend, request.replace(generation=penalty, whole=True))
    for place, step in enumerate(penalised.processed_steps):
        values, ids = torch.tensor(whole.distributions.processed(place)).log_softmax(-1).topk(20)
        assert list(step.top_ids) == ids.tolist()
        assert list(step.top_logprobs) == pytest.approx(values.tolist(), abs=1e-5)
        assert step.logprob == pytest.approx(
            float(torch.tensor(whole.distributions.processed(place)).log_softmax(-1)[PATH[place]]), abs=1e-5
        )


def test_one_row_cannot_be_led_along_two_paths(load: Any) -> None:
    batch = Batch((SHORT, LONG))
    two = [Request(SHORT, GREEDY, batch, kind="replay", continuation=path) for path in (PATH, PATH[:2])]
    assert ["two paths at once" in answer.message for answer in load().generate(two)] == [True, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generation": Generation(do_sample=False, num_beams=2, max_new_tokens=4)}, "no beams"),
        ({"generation": Generation(do_sample=False, prompt_lookup_num_tokens=2, max_new_tokens=4)}, "no beams"),
        ({"continuation": (20, 95)}, "has 95 embeddings"),
    ],
)
def test_what_cannot_be_led_is_refused(load: Any, changes: dict[str, Any], said: str) -> None:
    request = Request(SHORT, GREEDY, kind="replay", continuation=PATH).replace(**changes)
    (answer,) = load().generate([request])
    assert isinstance(answer, Failure)
    assert said in answer.message


def test_the_model_is_as_it_was_afterwards(load: Any) -> None:
    backend = load()
    before = answered(backend, Request(SHORT, GREEDY))[0].ids
    answered(backend, Request(SHORT, GREEDY, kind="replay", continuation=PATH))
    assert "_get_logits_processor" not in vars(backend.model)
    assert answered(backend, Request(SHORT, GREEDY))[0].ids == before


def test_no_room_for_the_distributions_names_the_remedy(load: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(replay, "_folder", lambda: tmp_path / "gone")
    (answer,) = load().generate([Request(SHORT, GREEDY, kind="replay", continuation=PATH)])
    assert isinstance(answer, Failure)
    assert "cannot be written" in answer.message
    assert "TMPDIR" in answer.message


# --- the likelihood of a text ----------------------------------------------------------------------------------------


def likelihoods_by_hand(backend: Any, ids: list[int]) -> list[float]:
    with torch.inference_mode():
        logprobs = backend.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return [float(logprobs[place, token]) for place, token in enumerate(ids[1:])]


def likelihood(backend: Any, text: str) -> Completion:
    (done,) = answered(backend, Request(Text(text=text), GREEDY, "alone", kind="likelihood"))
    return done


def test_every_token_of_a_text_is_predicted_from_those_before_it(load: Any) -> None:
    backend = load()
    done = likelihood(backend, LONG.text)
    ids = list(backend.tokenizer(LONG.text, add_special_tokens=False)["input_ids"])
    assert list(done.ids) == ids
    # The tiny tokenizer has no BOS: the end of another text is what comes before the first token.
    assert [step.logprob for step in done.steps] == pytest.approx(likelihoods_by_hand(backend, [EOS, *ids]), abs=1e-3)


@pytest.mark.parametrize("window", [4, 5, 8, 11, 12, 13])
def test_a_long_text_is_read_in_windows_that_overlap_by_half(load: Any, monkeypatch: Any, window: int) -> None:
    backend = load()
    monkeypatch.setattr(scoring, "WINDOW", window)
    done = likelihood(backend, LONG.text)
    row = [EOS, *done.ids]
    expected: list[float] = []
    start = 0
    while len(expected) < len(done.ids):
        part = likelihoods_by_hand(backend, row[start : start + window + 1])
        expected += part[len(expected) - start :]
        start += window // 2
    assert [step.logprob for step in done.steps] == pytest.approx(expected, abs=1e-3)


def test_a_text_may_be_longer_than_the_context(load: Any) -> None:
    done = likelihood(load("gpt2"), " ".join(f"w{n % 90}" for n in range(300)))  # learned positions: 128 of them
    assert len(done.steps) == 300
