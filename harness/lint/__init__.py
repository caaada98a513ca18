"""What is wrong with a model's files, and with a suite on this model, before anything is loaded.

To add a rule: write a function of a Subject that yields findings, in the file of its theme, and add one line
to RULES.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.files import ModelFiles, find
from harness.inputs import Model
from harness.lint import checkpoint, generation, prompts, tokenizers
from harness.lint.subject import SEVERITIES, Finding, Subject, uses
from harness.plan import Check

__all__ = ["RULES", "Finding", "Looked", "lint", "lint_model"]


@dataclass(frozen=True)
class Rule:
    """A way to look, and the rows of docs/behaviours.md that it catches."""

    look: Callable[[Subject], Iterator[Finding]]
    catches: tuple[str, ...] = ()


RULES: Mapping[str, Rule] = {
    "readable": Rule(checkpoint.readable),
    "loadable": Rule(checkpoint.loadable),
    "dtype": Rule(checkpoint.dtype, ("C12",)),
    "vocabulary": Rule(checkpoint.vocabulary, ("T7",)),
    "dialect": Rule(checkpoint.dialect, ("C10",)),
    "tokenizer_class": Rule(tokenizers.tokenizer_class, ("T6",)),
    "bos_flag": Rule(tokenizers.bos_flag, ("T6",)),
    "cuts_off": Rule(tokenizers.cuts_off, ("T8",)),
    "eos": Rule(generation.eos, ("E1", "E2")),
    "turn_end": Rule(generation.turn_end, ("E1",)),
    "hub_sampling": Rule(generation.hub_sampling, ("C1", "D4")),
    "hub_penalties": Rule(generation.hub_penalties, ("C1",)),
    "idle_arguments": Rule(generation.idle_arguments, ("C3", "C4")),
    "in_config_json": Rule(generation.in_config_json, ("C5",)),
    "pad": Rule(generation.pad, ("C9", "P4")),
    "padding_side": Rule(generation.padding_side, ("P1", "P11")),
    "lengths": Rule(generation.lengths, ("L1", "L3", "L4")),
    "template": Rule(prompts.template, ("T2",)),
    "ids": Rule(prompts.ids, ("T7",)),
    "prompts": Rule(prompts.sound, ("T1", "T2", "T4", "T9")),
    "careless": Rule(prompts.careless, ("T1", "T5", "T8", "T9", "P6")),
    "context": Rule(checkpoint.context, ("L7",)),
    "window": Rule(checkpoint.window, ("K2",)),
    "dynamic_rope": Rule(checkpoint.dynamic_rope),
}


@dataclass(frozen=True)
class Looked:
    """One model, what suites call it, and what was found; or why it could not be looked at."""

    names: tuple[str, ...]
    where: str  # its folder; "" when it could not be looked at
    findings: tuple[Finding, ...] = ()
    why_not: str = ""


def lint(checks: Iterable[Check]) -> list[Looked]:
    """Every model of a plan, together with all that is asked of it; scripted models have no files."""
    by_model: dict[tuple[str, str | None], list[Check]] = {}
    for check in checks:
        if check.target.model.backend == "transformers":
            by_model.setdefault((check.target.model.path, check.target.model.revision), []).append(check)
    return [_look(of_model[0].target.model, of_model) for of_model in by_model.values()]


def _look(model: Model, checks: Sequence[Check]) -> Looked:
    names = tuple(dict.fromkeys(check.target.model_name for check in checks))
    files = find(model)
    if isinstance(files, str):
        return Looked(names, "", why_not=files)
    return Looked(names, str(files.where), tuple(_findings(Subject(files, uses(checks)))))


def lint_model(files: ModelFiles) -> list[Finding]:
    """What there is to say of a model without any suite."""
    return _findings(Subject(files))


def _findings(subject: Subject) -> list[Finding]:
    """Errors first; within a severity in the order of the rules."""
    found: dict[tuple[str, str], Finding] = {}
    for name, rule in RULES.items():
        for finding in _told(rule, subject):
            # What several rules stumble over is told once.
            found.setdefault(
                (finding.message, finding.where), dataclasses.replace(finding, rule=name, catches=rule.catches)
            )
    return sorted(found.values(), key=lambda finding: SEVERITIES.index(finding.severity))


def _told(rule: Rule, subject: Subject) -> list[Finding]:
    """Files come from anywhere and may hold anything: what a rule stumbles over is told, not raised."""
    try:
        return list(rule.look(subject))
    except Exception as error:
        stumbled = f"the files hold something unexpected: {type(error).__name__}: {error}"
        return [Finding("warning", stumbled, "Look for values of a wrong kind in the JSON files", "config.json")]
