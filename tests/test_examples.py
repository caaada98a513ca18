"""What the README and the shipped suites show must work."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from harness.expectations import TABLE
from harness.load import load, load_all
from harness.plan import plan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SUITES = sorted((ROOT / "suites").glob("*.yaml"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_suite_of_the_readme_loads(tmp_path: Path) -> None:
    (suite,) = blocks("yaml")
    (tmp_path / "my.yaml").write_text(suite, encoding="utf-8")
    made = plan([load(tmp_path / "my.yaml")])

    assert [target.name for target in made.targets] == ["candidate-none", "candidate-int8", "candidate-nf4"]
    assert len(made.checks) == 9


def test_the_budget_of_the_readme_is_one(tmp_path: Path) -> None:
    """The indented example of `compare` and `budget`, put into a suite that has what it names."""
    written = re.search(r"^    compare:\n.*?^(?=\S)", README, re.DOTALL | re.MULTILINE)
    assert written
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "prose.txt").write_text("A text.")
    (tmp_path / "s.yaml").write_text(
        "suite: s\nmodels: {m: some/path}\nprompts: {p: text}\n"
        "generation: {warm: {do_sample: true, max_new_tokens: 4}}\n"
        "tests: [{name: stops-by-itself, prompts: [p], expect: {stops_at_eos: true}}]\n" + textwrap.dedent(written[0])
    )
    suite = load(tmp_path / "s.yaml").suite
    assert suite.budget is not None
    assert set(suite.budget.model_fields_set) == set(type(suite.budget).model_fields)  # it shows every limit
    assert set(suite.compare.model_fields_set) == set(type(suite.compare).model_fields) - {"prompts"}


def test_the_readme_names_every_expectation() -> None:
    assert [name for name in TABLE if f"`{name}" not in README] == []


def test_the_readme_names_every_level() -> None:
    from harness.backends.quantizations import LEVELS

    assert [name for name in LEVELS if f"`{name}`" not in README] == []


def test_the_readme_names_commands_that_exist() -> None:
    from typer.main import get_command

    from harness.cli import app

    shown = set(re.findall(r"^ +harness (\w+)", README, re.MULTILINE))

    assert shown
    assert shown <= set(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_shipped_suite_loads_and_has_its_modeline(path: Path) -> None:
    loaded = load(path)

    assert loaded.suite.suite == path.stem
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=./suite.schema.json\n")


def test_the_shipped_suites_belong_together() -> None:
    assert {one.suite.suite for one in load_all([ROOT / "suites"])} == {
        "basics",
        "configuration",
        "decoding",
        "invariants",
        "lengths",
        "levels",
        "padding",
        "pinning",
        "prompting",
        "quantization",
        "stopping",
    }
