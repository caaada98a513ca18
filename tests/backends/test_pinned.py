"""Pins end to end on a tiny model: recorded, held to, and told when something changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.answers import Kept
from harness.errors import UsageError
from harness.load import load
from harness.pins import files
from harness.pins.book import Book, mode_of
from harness.pins.recording import save
from harness.plan import plan
from harness.runner import Runner
from harness.store import read
from harness.store import save as save_run

PROMPTS = {"one": "w1 w2 w3", "two": "w5 w6 w7 w8 w9 w10 w11", "three": "w20 w30"}


@pytest.fixture
def suite(tmp_path: Path, tiny: Any) -> Callable[..., Path]:
    def build(pinned: str = "tokens", generation: str = "{do_sample: false, max_new_tokens: 12}", **model: Any) -> Path:
        path = tiny(model.pop("architecture", "llama"), initializer_range=0.2, **model)
        lines = ["suite: s", f"models: {{tiny: {{path: {path}, dtype: float32, device: cpu}}}}"]
        lines += [f"generation: {{greedy: {generation}}}", "prompts:"]
        lines += [f'  {name}: "{text}"' for name, text in PROMPTS.items()]
        lines += ["tests:", f"  - {{name: as-before, prompts: [one, two, three], expect: {{pinned: {pinned}}}}}"]
        file = tmp_path / "s.yaml"
        file.write_text("\n".join(lines))
        return file

    return build


def judged(file: Path, mode: str = "compare", backend: Any = None) -> dict[str, Any]:
    """Every verdict by prompt and expectation; what was recorded is written."""
    load_one = (lambda *_, **__: Kept(backend)) if backend else None
    runner = Runner(plan([load(file)]).checks, load=load_one, pins=Book(mode))  # type: ignore[arg-type]
    try:
        found = {
            (record.prompt, record.expectation): record.verdict for each in runner.run() for record in each.records
        }
        found["told"] = save(runner.pins, runner.answers)  # type: ignore[index,assignment]
    finally:
        runner.close()
    return found  # type: ignore[return-value]


def pin_file(folder: Path) -> Path:
    (found,) = (folder / "pins").rglob("*.pins")
    return found


def test_a_missing_pin_fails_with_the_command_to_type(suite: Any) -> None:
    found = judged(suite())
    verdict = found["one", "pinned"]
    assert verdict.status == "failed"
    assert "nothing is pinned for one@greedy in lane cpu/float32/none/sdpa/any" in verdict.reason
    assert "pytest" in verdict.reason
    assert "--update-pins=new" in verdict.reason
    assert found["", "pinned_set"].status == "skipped"


def test_what_was_recorded_holds(suite: Any, tmp_path: Path) -> None:
    file = suite()
    recorded = judged(file, "update")
    assert recorded["one", "pinned"].reason == "recorded"
    assert any("3 recorded in" in line for line in recorded["told"])
    found = judged(file)
    assert {name: verdict.status for name, verdict in found.items() if name != "told"} == {
        ("one", "pinned"): "passed",
        ("two", "pinned"): "passed",
        ("three", "pinned"): "passed",
        ("", "pinned_set"): "passed",
    }
    assert found["one", "pinned"].numbers["level"] == "identical"
    # The floor was measured under changes that are none.
    header = pin_file(tmp_path).read_text().splitlines()[0]
    assert "exact repeat" in header
    assert "another attention" in header


def test_recording_again_changes_no_byte(suite: Any, tmp_path: Path) -> None:
    file = suite()
    judged(file, "update")
    before = pin_file(tmp_path).read_bytes()
    judged(file, "update")
    assert pin_file(tmp_path).read_bytes() == before


def test_a_prompt_that_two_tests_pin_is_recorded_once_with_all_that_either_needs(suite: Any, tmp_path: Path) -> None:
    file = suite("distribution", "{do_sample: false, repetition_penalty: 1.3, max_new_tokens: 12}")
    with file.open("a") as written:
        written.write("\n  - {name: tokens-too, prompts: [two], expect: {pinned: tokens}}\n")
    runner = Runner(plan([load(file)]).checks, pins=Book("update"))
    try:
        list(runner.run())
        (asked,) = runner.pins.asked.values()
        save(runner.pins, runner.answers)
    finally:
        runner.close()

    assert len(asked) == 3  # the floor is measured on as many, and not on each of them twice
    assert all(pin.processed for pin in files.read(str(pin_file(tmp_path))).pins.values())


def test_new_pins_leave_the_others_as_they_are(suite: Any, tmp_path: Path) -> None:
    file = suite()
    text = file.read_text()
    file.write_text(text.replace("[one, two, three]", "[one]"))
    judged(file, "update")
    before = pin_file(tmp_path).read_text().splitlines()
    file.write_text(text)
    found = judged(file, "new")
    assert found["one", "pinned"].reason != "recorded"
    assert found["two", "pinned"].reason == "recorded"
    after = pin_file(tmp_path).read_text().splitlines()
    assert len(after) == len(before) + 2
    assert before[1] in after


def changed(suite: Any, tmp_path: Path, **model: Any) -> dict[str, Any]:
    """Recorded on one model, judged on another under the same name."""
    judged(suite(), "update")
    return judged(suite(**model))


def test_other_weights_are_a_change_and_weights_are_the_stage(suite: Any, tmp_path: Path) -> None:
    found = changed(suite, tmp_path, rope_theta=500.0)
    verdict = found["", "pinned_set"]
    assert verdict.status == "failed"
    assert verdict.numbers["level"] in ("changed", "broken")
    told = "\n".join((verdict.reason, *verdict.details))
    assert "weights" in told
    assert "prompt ids equal" in told
    assert "--update-pins" in told


def test_an_epsilon_that_changes_no_token_is_found_in_float32(suite: Any, tmp_path: Path) -> None:
    found = changed(suite, tmp_path, rms_norm_eps=2e-3)
    levels = [verdict.numbers["level"] for name, verdict in found.items() if name != "told"]
    assert set(levels) & {"drift", "changed", "broken"}


def test_a_penalty_that_slips_in_is_a_change_of_the_config(suite: Any) -> None:
    file = suite()
    judged(file, "update")
    file.write_text(file.read_text().replace("max_new_tokens: 12", "max_new_tokens: 12, repetition_penalty: 1.3"))
    verdict = judged(file)["", "pinned_set"]
    assert verdict.status == "failed"
    told = "\n".join((verdict.reason, *verdict.details))
    assert re.search(r"repetition_penalty (unset|1\.0) -> 1\.3", told)


def test_sampled_tokens_are_pinned_by_their_seed(suite: Any) -> None:
    file = suite(generation="{do_sample: true, temperature: 1.5, seed: 3, max_new_tokens: 12}")
    judged(file, "update")
    assert judged(file)["one", "pinned"].status == "passed"
    file.write_text(file.read_text().replace("seed: 3", "seed: 4"))
    assert judged(file)["one", "pinned"].status == "failed"


def test_distribution_does_not_ask_for_the_sampled_tokens(suite: Any) -> None:
    file = suite("distribution", generation="{do_sample: true, temperature: 1.5, seed: 3, max_new_tokens: 12}")
    judged(file, "update")
    file.write_text(file.read_text().replace("seed: 3", "seed: 4"))
    assert judged(file)["", "pinned_set"].status == "passed"


def test_a_processor_that_acts_otherwise_is_found_though_config_and_raw_scores_are_equal(suite: Any) -> None:
    from harness import backends

    file = suite("distribution", "{do_sample: true, temperature: 1.5, top_k: 5, seed: 3, max_new_tokens: 12}")
    judged(file, "update")
    backend: Any = backends.load(plan([load(file)]).checks[0].target)
    assert judged(file, backend=backend)["", "pinned_set"].status == "passed"
    build = backend.model._get_logits_processor

    def without_top_k(*args: Any, **arguments: Any) -> Any:
        processors = build(*args, **arguments)
        kept = [one for one in processors if "TopK" not in type(one).__name__]
        assert len(kept) < len(processors)
        return type(processors)(kept)

    backend.model._get_logits_processor = without_top_k
    verdict = judged(file, backend=backend)["", "pinned_set"]
    assert (verdict.status, verdict.numbers["level"]) == ("failed", "changed")
    told = "\n".join((verdict.reason, *verdict.details))
    assert "processed scores" in told
    assert "raw scores within noise" in told
    assert "generation config equal" in told


def test_pins_of_no_test_are_told(suite: Any) -> None:
    file = suite()
    judged(file, "update")
    file.write_text(file.read_text().replace("[one, two, three]", "[one, two]"))
    assert any("three@greedy" in line for line in judged(file)["told"])


def test_ci_never_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert mode_of(None) == "compare"
    with pytest.raises(UsageError, match="never recorded in CI"):
        mode_of("all")
    monkeypatch.delenv("CI")
    assert (mode_of("all"), mode_of("new")) == ("update", "new")
    with pytest.raises(UsageError, match="no such choice"):
        mode_of("suites/")


def test_a_failure_is_written_down_as_a_script(suite: Any, tmp_path: Path) -> None:
    judged(suite(), "update")
    file = suite(rope_theta=500.0)
    runner = Runner(plan([load(file)]).checks, pins=Book(), repros=tmp_path / "repros")
    failed = [record for each in runner.run() for record in each.records if record.verdict.status == "failed"]
    runner.close()
    written = [line for record in failed for line in record.verdict.details if line.startswith("repro   python ")]
    assert written
    for line in written:
        script = Path(line.removeprefix("repro   python "))
        assert script.parent == tmp_path / "repros"
        assert "import harness" not in script.read_text()
        assert "from harness" not in script.read_text()


def test_what_a_failed_check_was_held_to_comes_along(suite: Any, tmp_path: Path) -> None:
    file = suite()
    judged(file, "update")
    file.write_text(file.read_text().replace("do_sample: false", "do_sample: false, repetition_penalty: 3.0"))
    runner = Runner(plan([load(file)]).checks)
    judgements = [one for one in runner.run() if one.status == "failed" and not one.check.over_set]
    runner.close()
    results = runner.results()

    assert {one.check.id for one in judgements} == set(results.pins)
    pinned = files.read(str(pin_file(tmp_path))).pins
    for one in judgements:
        assert results.pins[one.check.id] == pinned[f"{one.check.cases[0].name}@greedy"]
    assert read(save_run(results, tmp_path)).pins.keys() == results.pins.keys()
    for check, pin in read(save_run(results, tmp_path)).pins.items():
        assert [list(step.top_logprobs) for step in pin.steps] == [
            list(step.top_logprobs) for step in results.pins[check].steps
        ]
    # Every token that was likely has its text.
    (said,) = results.texts.values()
    likely = {token for _, done in results.completions for step in done.steps for token in step.top_ids[:5]}
    assert likely == said.keys()
    tokenizer = AutoTokenizer.from_pretrained(runner.checks[0].target.model.path)
    assert said == {token: tokenizer.decode([token]) for token in said}
