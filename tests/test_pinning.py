"""`harness pin`, `harness pin review` and pytest's --update-pins, on a model that says what it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main

SUITE = """\
suite: demo
models:
  fake:
    backend: scripted
    completions:
      - {prompt: "capital?", text: "It is Paris."}
      - {prompt: "count", text: "one two three"}
prompts: {capital: "capital?", counting: "count"}
tests:
  - {name: as-before, prompts: [capital, counting], expect: {pinned: tokens}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text(SUITE)
    return tmp_path


def says(folder: Path, old: str, new: str) -> None:
    text = (folder / "demo.yaml").read_text()
    assert old in text
    (folder / "demo.yaml").write_text(text.replace(old, new))


def pins(folder: Path) -> Path:
    (found,) = (folder / "pins").rglob("*.pins")
    return found


def test_recorded_held_to_and_recorded_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "demo.yaml", "--no-report"]) == 1  # nothing is pinned yet
    assert "--update-pins=new" in capsys.readouterr().out
    assert main(["pin", "demo.yaml"]) == 0
    assert "2 recorded in" in capsys.readouterr().out
    assert main(["run", "demo.yaml", "--no-report"]) == 0
    before = pins(folder).read_bytes()
    assert main(["pin", "demo.yaml"]) == 0
    assert pins(folder).read_bytes() == before
    says(folder, "It is Paris.", "It is Rome.")
    assert main(["run", "demo.yaml", "--no-report"]) == 1
    assert main(["pin", "demo.yaml"]) == 0
    assert main(["run", "demo.yaml", "--no-report"]) == 0


def test_a_review_shows_each_change_and_takes_what_is_accepted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pin", "demo.yaml"])
    says(folder, "It is Paris.", "It is Rome.")
    says(folder, "one two three", "one two four")
    before = pins(folder).read_bytes()
    capsys.readouterr()
    assert main(["pin", "review", "demo.yaml"]) == 1  # nobody to ask: both wait
    shown = capsys.readouterr().out
    assert "Paris" in shown
    assert "Rome" in shown
    assert "2 pins still to be reviewed" in shown
    assert pins(folder).read_bytes() == before
    assert main(["pin", "review", "demo.yaml", "--accept", "capital*", "--reject", "counting"]) == 0
    said = capsys.readouterr().out
    assert "capital@greedy accepted" in said
    assert "counting@greedy rejected" in said
    after = pins(folder).read_text()
    assert "It is Rome." in after
    assert "one two three" in after
    assert not list(folder.rglob("*.new"))


def test_an_unchanged_pin_needs_no_review(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pin", "demo.yaml"])
    capsys.readouterr()
    assert main(["pin", "review", "demo.yaml"]) == 0
    assert "still to be reviewed" not in capsys.readouterr().out


def test_pins_of_no_test_are_pruned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pin", "demo.yaml"])
    says(folder, "prompts: [capital, counting]", "prompts: [capital]")
    capsys.readouterr()
    assert main(["pin", "--prune", "demo.yaml"]) == 0
    assert "1 pin deleted: counting@greedy" in capsys.readouterr().out
    assert "counting" not in pins(folder).read_text().split("\n", 1)[1]


def test_fragile_prompts_are_shown_without_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pin", "demo.yaml"])
    capsys.readouterr()
    assert main(["pin", "--show-fragile", "demo.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "flips to be expected from noise, in 2 pins" in shown
    assert "capital@greedy" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pin", "review"], "no suite given"),
        (["pin", "demo.yaml", "--accept", "x"], "belong to a review"),
        (["pin", "demo.yaml", "-k", "nothing"], "nothing selected"),
    ],
)
def test_wrong_usage_names_the_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) in (2, 5)
    assert said in capsys.readouterr().err


def test_a_suite_without_pins_says_what_to_write(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(folder, "pinned: tokens", "stops_at_eos: true")
    assert main(["pin", "demo.yaml"]) == 2
    assert "pinned: tokens" in capsys.readouterr().err


def test_ci_never_records(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert main(["pin", "demo.yaml"]) == 2
    assert "never recorded in CI" in capsys.readouterr().err
    assert not (folder / "pins").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace("It is Paris.", "It is Rome."), "edited"),
        (lambda text: text[:-40], ""),
        (lambda text: "<<<<<<< HEAD\n" + text, "conflict"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    folder: Path, capsys: pytest.CaptureFixture[str], damage, said
) -> None:
    with (folder / "demo.yaml").open("a") as suite:
        suite.write("  - {name: answers, prompts: [capital], expect: {contains: Paris}}\n")
    main(["pin", "demo.yaml"])
    file = pins(folder)
    file.write_text(damage(file.read_text()))
    capsys.readouterr()
    assert main(["run", "demo.yaml", "--no-report"]) == 3
    shown = capsys.readouterr()
    assert file.name in shown.out + shown.err
    assert said in shown.out + shown.err
    # Two prompts and both together; the rest is judged all the same.
    assert "1 of 4 checks passed, 3 errors" in shown.out


def test_pytest_records_and_holds(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    pytester.makefile(".yaml", demo=SUITE)
    missing = pytester.runpytest("demo.yaml", "-p", "no:cacheprovider")
    missing.assert_outcomes(failed=2, skipped=1)
    assert any("--update-pins=new" in line for line in missing.outlines)
    recorded = pytester.runpytest("demo.yaml", "--update-pins", "-p", "no:cacheprovider")
    recorded.assert_outcomes(passed=3)
    assert any("2 recorded in" in line for line in recorded.outlines)
    pytester.runpytest("demo.yaml", "-p", "no:cacheprovider").assert_outcomes(passed=3)
    text = (pytester.path / "demo.yaml").read_text()
    (pytester.path / "demo.yaml").write_text(text.replace("It is Paris.", "It is Rome."))
    changed = pytester.runpytest("demo.yaml", "-p", "no:cacheprovider")
    assert changed.parseoutcomes()["failed"] == 2
    assert any("CHANGED" in line for line in changed.outlines)


@pytest.mark.slow
def test_workers_of_xdist_record_too(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    pytester.makefile(".yaml", demo=SUITE.replace("prompts: {", "quantization: [none, nf4]\nprompts: {", 1))
    done = pytester.runpytest_subprocess("demo.yaml", "--update-pins", "-n", "2", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=6)
    assert sum("2 recorded in" in line for line in done.outlines) == 2
    assert len(list((pytester.path / "pins").rglob("*.pins"))) == 2


def test_the_option_before_a_path_says_how_to_write_it(pytester: pytest.Pytester) -> None:
    pytester.makefile(".yaml", demo=SUITE)
    done = pytester.runpytest("--update-pins", "demo.yaml", "-p", "no:cacheprovider")
    assert done.ret != 0
    assert any("--update-pins=new" in line for line in (*done.outlines, *done.errlines))
