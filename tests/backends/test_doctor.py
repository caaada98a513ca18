"""`harness doctor` and `harness init` on tiny models: what is wrong is told with its remedy, what is made passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.cli import app
from harness.doctor import Diagnosis, diagnose
from harness.inputs import Model


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ships sampling switched on, and pads on the right."""
    copy = tmp_path_factory.mktemp("doctor") / "sampler"
    shutil.copytree(tiny(spells=True, chat=False), copy)
    file = copy / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": True, "temperature": 0.7, "top_k": 20}))
    return copy


@pytest.fixture(scope="module")
def diagnosis(folder: Path) -> Diagnosis:
    return diagnose(Model(path=str(folder), dtype="float32", device="cpu"), "sampler")


@pytest.mark.slow
def test_the_invariants_hold_and_the_padding_side_does_not(diagnosis: Diagnosis) -> None:
    fine, bites = diagnosis.by_expectation("passed"), diagnosis.by_expectation("failed", "error")
    assert {"left_padding", "static_cache", "one_forward", "prefix", "processor_order", "seeded"} <= set(fine)
    assert "padding_invariant" in bites
    assert not diagnosis.healthy
    assert "loading" not in fine


@pytest.mark.slow
def test_what_bare_calls_do_is_told(diagnosis: Diagnosis) -> None:
    (record,) = diagnosis.by_expectation("passed")["bare_call"]
    assert record.verdict.numbers["generate.do_sample"] is True
    assert "samples" in record.verdict.reason


@pytest.mark.slow
def test_its_files_are_linted(diagnosis: Diagnosis) -> None:
    assert diagnosis.not_looked_at == ""
    assert {"hub_sampling", "padding_side"} <= {finding.rule for finding in diagnosis.findings}


@pytest.mark.slow
def test_the_page(folder: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(folder), "--device", "cpu"])
    assert done.exit_code == 1
    sections = ["WHAT WILL BITE", "ITS FILES", "WHAT BARE CALLS DO", "DOES NOT APPLY", "FINE"]
    places = [done.stdout.index(f"\n{section}\n") for section in sections]
    assert places == sorted(places)
    assert 'remedy  code: tokenizer.padding_side = "left"    suite: padding_side: left' in done.stdout
    assert done.stdout.splitlines()[-1].startswith("WILL BITE  ")


@pytest.mark.slow
def test_a_suite_is_written_that_passes(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "made.yaml"
    arguments = ["init", str(folder), "--device", "cpu", "--out", str(file)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"next: harness run {file}" in done.stdout
    made = yaml.safe_load(file.read_text())
    tests = {test["name"]: test for test in made["tests"]}
    assert tests["same-tokens-every-way"]["expect"] == {"invariants": "all"}
    assert tests["bare-calls"]["expect"]["bare_call"]["generate"]["do_sample"] is True
    assert "right-padded" in tests["padding-as-shipped"]["xfail"][0]["reason"]
    assert CliRunner().invoke(app, ["lint", "--no-models", str(file)]).exit_code == 0
    assert (
        CliRunner().invoke(app, ["run", str(file), "--no-report", "-k", "padding or bare or invariants"]).exit_code == 0
    )
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code != 0
    assert "is there already" in str(again.exception)


@pytest.mark.slow
def test_what_the_suite_holds_to_is_noticed_when_it_changes(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    file = tmp_path / "made.yaml"
    CliRunner().invoke(app, ["init", str(copy), "--device", "cpu", "--out", str(file)])
    config = copy / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_sample": False}))
    done = CliRunner().invoke(app, ["run", str(file), "--no-report", "-k", "bare"])
    assert done.exit_code == 1
    assert "do_sample is false, the suite says true" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["doctor", "/no/such/model"], "/no/such/model"),
        (["doctor", "x", "--dtype", "float31"], "dtype"),
        (["init", "x", "--device", "gpu"], "device"),
    ],
)
def test_bad_input_is_told(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code != 0
    assert told in str(done.exception)
