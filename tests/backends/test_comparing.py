"""Comparing tiny real models end to end, against plain calls of torch and transformers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import harness
from harness.comparison.comparing import prepare
from harness.comparison.measuring import OTHER_TOKENIZER
from harness.errors import UsageError

PROMPTS = {"short": "w1 w2 w3", "long": "w5 w6 w7 w8 w9 w10 w11 w12", "other": "w20 w21"}
TEXT = "w1 w9 w3 w7 w5\n\nw30 w31 w32"
TOKENS = 6

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, tiny: Any) -> Write:
    """A suite file on a tiny model."""

    def build(rest: str = "", models: dict[str, str] | None = None) -> Path:
        models = models or {"tiny": str(tiny("llama", initializer_range=0.2))}
        lines = ["suite: s", "models:"]
        lines += [f"  {name}: {{path: {path}, dtype: float32, device: cpu}}" for name, path in models.items()]
        lines += ["generation:", f"  greedy: {{do_sample: false, max_new_tokens: {TOKENS}}}", "prompts:"]
        lines += [f'  {name}: "{text}"' for name, text in PROMPTS.items()]
        lines += ["tests:", "  - {name: says-something, prompts: [short], expect: {new_tokens: {min: 1}}}", rest]
        file = tmp_path / "s.yaml"
        file.write_text("\n".join(lines))
        return file

    return build


LEVELS = "quantization: [fp32, bf16]\nbaseline: {quantization: fp32}\n"
FAST = "compare: {speed: {repeats: 2, new_tokens: 2, batch_size: 2}}\n"


def replayed_by_hand(path: Path, dtype: torch.dtype, prompt: str, continuation: list[int]) -> torch.Tensor:
    """Log-probabilities at every place of the continuation: one forward pass, in float64 from the logits on."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    ids = AutoTokenizer.from_pretrained(path)(prompt)["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids + continuation[:-1]]), use_cache=False).logits[0, len(ids) - 1 :]
    return logits.double().log_softmax(-1)


def test_every_statistic_of_a_replay_is_that_of_plain_forward_passes(write: Write, tiny: Any) -> None:
    path = tiny("llama", initializer_range=0.2)
    run = harness.compare(write(LEVELS), speed=False)
    done = {
        (target, name): next(
            one
            for owner, one in run.results.completions
            if owner == target and one.request.prompt.text == text and one.request.kind == "generate"
        )
        for target in ("tiny-fp32", "tiny-bf16")
        for name, text in PROMPTS.items()
    }
    divergences, agreements, gaps = [], [], []
    for name, text in PROMPTS.items():
        continuation = list(done["tiny-fp32", name].ids)
        base = replayed_by_hand(path, torch.float32, text, continuation)
        own = replayed_by_hand(path, torch.bfloat16, text, continuation)
        divergences += (base.exp() * (base - own)).sum(-1).tolist()
        agreements += (base.argmax(-1) == own.argmax(-1)).tolist()
        gaps += [float(base[i, token] - own[i, token]) for i, token in enumerate(continuation)]
    frame = run.compare()
    assert len(divergences) >= TOKENS
    assert max(divergences) > 1e-6
    tokens = run.tokens()
    mine = tokens[tokens.candidate == "tiny-bf16"]
    # bfloat16 rounds otherwise with a cache than without: the places are compared loosely, float32 tightly below.
    assert mine.kl.tolist() == pytest.approx(divergences, rel=0.5, abs=2e-4)
    assert frame.loc["tiny-bf16", "kl"] == pytest.approx(mine.kl.mean())
    assert frame.loc["tiny-bf16", "top1"] == pytest.approx((mine.top == mine.baseline_top).mean())
    assert frame.loc["tiny-bf16", "continuation_ratio"] == pytest.approx(math.exp(sum(gaps) / len(gaps)), rel=0.02)
    assert frame.loc["tiny-fp32", ["kl", "top1", "continuation_ratio"]].tolist() == [0, 1, 1]


def test_two_models_of_one_tokenizer_compare_exactly_in_float32(write: Write, tiny: Any) -> None:
    paths = {
        "one": tiny("llama", initializer_range=0.2),
        "two": tiny("llama", initializer_range=0.2, rope_theta=2000.0),
    }
    run = harness.compare(write(models={name: str(path) for name, path in paths.items()}), speed=False)
    tokens = run.tokens()
    for name, text in PROMPTS.items():
        continuation = next(
            list(one.ids)
            for owner, one in run.results.completions
            if owner == "one-none" and one.request.prompt.text == text and one.request.kind == "generate"
        )
        base, own = (replayed_by_hand(path, torch.float32, text, continuation) for path in paths.values())
        expected = (base.exp() * (base - own)).sum(-1).tolist()
        mine = tokens[(tokens.candidate == "two-none") & (tokens.prompt == name)]
        assert mine.kl.tolist() == pytest.approx(expected, abs=1e-6)
        assert mine.baseline_top.tolist() == base.argmax(-1).tolist()
        assert mine.top.tolist() == own.argmax(-1).tolist()
        for row, theirs, its in zip(mine.itertuples(), base, own, strict=True):
            assert row.baseline_margin == pytest.approx(float(theirs[row.baseline_top] - theirs[row.top]), abs=1e-5)
            assert row.margin == pytest.approx(float(its[row.top] - its[row.baseline_top]), abs=1e-5)
    flips = run.flips()
    assert len(flips) == (tokens.top != tokens.baseline_top).sum()


def test_texts_are_read_by_every_target(write: Write, tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    run = harness.compare(
        write(LEVELS + "compare: {texts: {a: {file: text.txt}, b: w40 w41}}\n"), speed=False, checks=False
    )
    path = tiny("llama", initializer_range=0.2)
    model, words = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    nats = tokens = size = 0.0
    for paragraph in (*TEXT.split("\n\n"), "w40 w41"):
        ids = words(paragraph)["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[1, *ids]]), use_cache=False).logits[0].double().log_softmax(-1)
        nats -= sum(float(logits[place, token]) for place, token in enumerate(ids))
        tokens, size = tokens + len(ids), size + len(paragraph.encode())
    frame = run.compare()
    assert frame.loc["tiny-fp32", "perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert frame.loc["tiny-fp32", "bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert frame.loc["tiny-fp32", "perplexity_ratio"] == 1
    assert frame.loc["tiny-bf16", "perplexity_ratio"] == pytest.approx(
        frame.loc["tiny-bf16", "perplexity"] / frame.loc["tiny-fp32", "perplexity"]
    )


@pytest.mark.slow
def test_generation_configs_are_candidates_and_what_they_change_is_after_the_processors(write: Write) -> None:
    generation = (
        "generation:\n  greedy: {do_sample: false, max_new_tokens: 6}\n"
        "  warm: {do_sample: true, temperature: 2.0, max_new_tokens: 6}\n"
        "  beams: {do_sample: false, num_beams: 3, max_new_tokens: 6}\n"
        "  penalty: {do_sample: false, repetition_penalty: 3.0, max_new_tokens: 6}\n"
        "compare: {generation: [greedy, warm, beams, penalty], speed: {repeats: 2, new_tokens: 2, batch_size: 2}}\n"
    )
    file = write()
    text = file.read_text()
    file.write_text(text.replace(text[text.index("generation:") : text.index("prompts:")], generation))
    frame = harness.compare(file).compare()
    assert list(frame.index) == ["tiny-none", "tiny-none/warm", "tiny-none/beams", "tiny-none/penalty"]
    assert frame.kl.tolist() == pytest.approx([0] * 4, abs=1e-10)  # the same weights on the same path
    assert frame.loc["tiny-none/warm", "processed_distance"] > 0.05
    assert frame.loc["tiny-none/warm", "processed_top1"] == 1  # a temperature leaves the order as it is
    assert frame.loc["tiny-none/beams", "processed_distance"] == 0
    assert frame.loc["tiny-none/penalty", "processed_distance"] > 0.05
    assert frame.tokens_per_second.notna().all()


def test_memory_and_speed_are_measured_for_each_target(write: Write) -> None:
    run = harness.compare(write(LEVELS + FAST))
    frame = run.compare()
    parameters = sum(one.numel() for one in AutoModelForCausalLM.from_pretrained(_path(run)).parameters())
    assert frame.loc["tiny-fp32", "weights_mb"] == pytest.approx(4 * parameters / 1e6, rel=0.02)
    assert frame.loc["tiny-bf16", "weights_mb"] == pytest.approx(2 * parameters / 1e6, rel=0.05)
    assert (frame[["first_token_ms", "tokens_per_second", "batch_tokens_per_second", "load_seconds"]] > 0).all().all()
    assert frame.loc["tiny-fp32", "speedup"] == 1
    assert abs(frame["kept_mb"].fillna(0)).max() < 50
    first, second = run.results.measured.timings
    assert [len(part) for part in (first.first_token, first.single, first.batch, first.yardstick)] == [2, 2, 2, 2]
    # What was measured is what the results hold: new tokens over seconds of the whole batch.
    batches = [
        one
        for owner, one in run.results.completions
        if owner == "tiny-bf16" and one.batch_size == 2 and one.request.repeat
    ]
    assert second.batch == pytest.approx([2 * 2 / one.seconds for one in batches[1:]])  # without the warm-up


@pytest.mark.slow
def test_side_by_side_the_baseline_is_timed_in_turns_and_stays(write: Write, monkeypatch: Any) -> None:
    from harness.backends.transformers import Transformers

    order: list[str] = []
    generate, close = Transformers.generate, Transformers.close
    monkeypatch.setattr(
        Transformers, "generate", lambda self, some: order.append(self.target.name) or generate(self, some)
    )
    monkeypatch.setattr(Transformers, "close", lambda self: order.append(f"close {self.target.name}") or close(self))
    run = harness.compare(write(LEVELS + FAST), checks=False, speed="side by side")
    own = run.results.measured.timings[1]
    assert [len(part) for part in (own.single, own.beside_single, own.batch, own.beside_batch)] == [2] * 4
    assert order[-8:-2] == ["tiny-fp32", "tiny-bf16"] * 3  # a warm-up and two repeats of the batch
    assert sorted(order[-2:]) == ["close tiny-bf16", "close tiny-fp32"]
    assert run.results.measured.timings[0].beside_batch == ()  # the baseline is not timed in turns with itself
    assert run.compare().loc["tiny-fp32", "speedup"] == 1
    ratios = [mine / theirs for mine, theirs in zip(own.batch, own.beside_batch, strict=True)]
    assert run.compare().loc["tiny-bf16", "speedup"] == pytest.approx(sum(ratios) / 2)


@pytest.mark.slow
def test_one_target_is_resident_at_a_time(write: Write, monkeypatch: Any) -> None:
    from harness import backends
    from harness.backends.transformers import Transformers

    order: list[str] = []
    load, close = backends.load, Transformers.close
    monkeypatch.setattr(
        backends, "load", lambda target, **given: order.append(f"load {target.name}") or load(target, **given)
    )
    monkeypatch.setattr(Transformers, "close", lambda self: order.append(f"close {self.target.name}") or close(self))
    harness.compare(write(LEVELS + FAST))
    assert order == ["load tiny-fp32", "close tiny-fp32", "load tiny-bf16", "close tiny-bf16"]


def _path(run: Any) -> str:
    return run.results.targets[0].model.path


def test_another_tokenizer_leaves_texts_checks_and_bits_per_byte(write: Write, tiny: Any) -> None:
    models = {"one": str(tiny("llama")), "two": str(tiny("llama", spells=True))}
    run = harness.compare(write("compare: {texts: {a: w1 w2 w3}}\nbudget: {max_kl: 0.1}\n", models=models), speed=False)
    frame = run.compare()
    assert frame.loc["two-none", "not_measured"] == OTHER_TOKENIZER
    assert frame.loc["two-none", ["kl", "top1", "same_tokens", "perplexity_ratio"]].isna().all()
    assert frame.loc["two-none", ["bits_per_byte", "similarity", "checks", "same_end"]].notna().all()
    assert any("another tokenizer" in note for note in run.results.measured.notes)
    assert frame.loc["two-none", "gate"] == "cannot tell"
    assert OTHER_TOKENIZER in frame.loc["two-none", "reasons"]


def test_a_baseline_that_cannot_be_loaded_leaves_what_needs_none(write: Write, tiny: Any, tmp_path: Path) -> None:
    models = {"gone": str(tmp_path / "nowhere" / "model"), "there": str(tiny("llama"))}
    run = harness.compare(
        write("compare: {texts: {a: w1 w2 w3}}\nbaseline: {model: gone}\n", models=models), speed=False
    )
    frame = run.compare()
    assert "There is no" in frame.loc["gone-none", "not_measured"]
    assert frame.loc["there-none", ["perplexity", "checks"]].notna().all()
    assert frame.loc["there-none", ["kl", "perplexity_ratio", "similarity"]].isna().all()
    assert any("the baseline, could not be run" in note for note in run.results.measured.notes)


def test_a_candidate_that_cannot_be_loaded_leaves_the_others(write: Write, tiny: Any, tmp_path: Path) -> None:
    models = {"one": str(tiny("llama")), "gone": str(tmp_path / "nowhere" / "model"), "two": str(tiny("gpt2"))}
    frame = harness.compare(write(models=models), speed=False).compare()
    assert "There is no" in frame.loc["gone-none", "not_measured"]
    assert frame.loc["two-none", "kl"] > 0


@pytest.mark.slow
def test_a_run_folder_gives_the_same_comparison_back(write: Write, tmp_path: Path) -> None:
    run = harness.compare(write(LEVELS + FAST + "budget: {max_kl: 0.1, min_top1: 0.5}\n"))
    again = harness.read(run.save(tmp_path / "reports"))
    assert again.compare().equals(run.compare())
    assert again.decision == run.decision
    assert again.prompts().equals(run.prompts())
    assert again.tokens().equals(run.tokens())


def test_distributions_do_not_outlive_the_comparison(write: Write, monkeypatch: Any, tmp_path: Path) -> None:
    from harness.backends import replay

    monkeypatch.setattr(replay, "_folder", lambda: tmp_path)
    run = harness.compare(write(LEVELS), speed=False)
    assert len(run.tokens()) > 0
    assert not list(tmp_path.glob("*.logits"))


def test_without_room_for_distributions_the_remedy_is_told(write: Write, monkeypatch: Any) -> None:
    from harness.comparison import measuring

    monkeypatch.setattr(measuring.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UsageError, match="--limit"):
        harness.compare(write(LEVELS), speed=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ["nix"]}, "no target is called 'nix'"),
        ({"baseline": "nix"}, "no target is called 'nix'"),
    ],
)
def test_unknown_names_are_told_with_those_there_are(write: Write, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        prepare([write(LEVELS)], **options)
    assert "tiny-fp32, tiny-bf16" in error.value.remedy


@pytest.mark.parametrize("bad", [b"", b"\n \n\n", b"\xff\xfe\x00"])
def test_texts_are_looked_at_before_anything_is_loaded(write: Write, tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "text.txt").write_bytes(bad)
    with pytest.raises(UsageError, match="text"):
        prepare([write(LEVELS + "compare: {texts: {words: {file: text.txt}}}\n")])


def test_the_suite_is_told_where_no_check_was_judged(write: Write) -> None:
    (told,) = harness.compare(write(LEVELS), checks=False, speed=False, limit=1).results.suites
    assert (told["name"], len(told["sha256"])) == ("s", 64)


def test_one_suite_at_a_time(write: Write, tmp_path: Path) -> None:
    first = write(LEVELS)
    second = tmp_path / "second.yaml"
    second.write_text(first.read_text().replace("suite: s", "suite: t"))
    with pytest.raises(UsageError, match="one suite is compared at a time, and there are 2"):
        prepare([first, second])


@pytest.mark.slow
def test_limit_takes_the_first_prompts_and_a_target_brings_the_baseline_along(write: Write) -> None:
    run = harness.compare(write(LEVELS), target="tiny-bf16", limit=2, checks=False, speed=False)
    assert list(run.compare().index) == ["tiny-fp32", "tiny-bf16"]
    assert list(run.prompts().prompt) == ["short", "long"] * 2
    assert run.frame().empty


@pytest.mark.slow
def test_another_baseline_by_name(write: Write) -> None:
    run = harness.compare(write(LEVELS), baseline="tiny-bf16", checks=False, speed=False)
    assert list(run.compare().index) == ["tiny-bf16", "tiny-fp32"]
    assert run.compare().loc["tiny-bf16", "kl"] == 0
    assert run.compare().loc["tiny-fp32", "kl"] > 0


def test_the_python_of_the_readme_runs(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "harness.compare" in block]
    exec(code.replace("suites/levels.yaml", str(write(LEVELS + FAST + "budget: {max_kl: 9}\n"))), {})
    shown = capsys.readouterr().out
    assert "tiny-bf16" in shown
    assert "gate" in shown
