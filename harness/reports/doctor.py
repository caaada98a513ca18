"""One page about one model: what will bite, what bare calls do, what does not apply, what is fine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from harness.doctor import Diagnosis
from harness.record import Record, TargetFacts, Verdict
from harness.reports import SYMBOLS, visible
from harness.reports.drawing import plain
from harness.reports.terminal import STYLES, say

# What to type when an expectation that tells no remedy of its own is not met.
REMEDIES: Mapping[str, str] = {
    "padding_invariant": 'code: tokenizer.padding_side = "left"    suite: padding_side: left',
    "left_padding": "do not batch this model with this version of transformers; run prompts one by one",
    "any_pad_token": "do not batch this model with this version of transformers; run prompts one by one",
    "processors": "leave penalties out of batches, or upgrade transformers; run such prompts one by one",
    "inferred_mask": "code: model.generate(**tokenizer(text, return_tensors='pt')), which passes attention_mask",
    "attention": "code: from_pretrained(…, attn_implementation='eager')    suite: attention: eager",
    "static_cache": "leave cache_implementation unset",
    "no_cache": "report it to the author of the model's code: the cache changes its output",
    "stops_at_eos": "suite: a higher max_new_tokens; or eos_token_id of the token that ends a turn, in the model's "
    "generation_config.json",
    "deterministic": "code: do_sample=False; on a GPU also torch.use_deterministic_algorithms(True)",
    "no_repetition": "suite: generation: repetition_penalty: 1.1, or another prompt: base models loop on few words",
}
SEVERITY = {"error": "failed", "warning": "xfailed", "note": "skipped"}
WIDTH = 18


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the page; the last line is the verdict."""
    say(console, (f"{diagnosis.name}  ", "bold"), _model(diagnosis.facts))
    bites = diagnosis.by_expectation("failed", "error")
    _section(console, "what will bite", bites, "failed", told=_failed)
    _findings(console, diagnosis)
    bare = [record for record in diagnosis.records if record.expectation.startswith("bare_call")]
    _section(console, "what bare calls do", {"bare_call": bare} if bare else {}, "passed", told=_bare)
    _section(console, "does not apply", diagnosis.by_expectation("skipped"), "skipped", told=_reason)
    fine = diagnosis.by_expectation("passed")
    fine.pop("bare_call", None)
    _section(console, "fine", fine, "passed", told=_passed)
    say(console, "")
    if diagnosis.healthy:
        say(console, ("HEALTHY  ", "bold green"), f"{len(fine)} of {len(fine)} ways to look at it found nothing wrong")
    else:
        errors = sum(finding.severity == "error" for finding in diagnosis.findings)
        say(console, ("WILL BITE  ", "bold red"), f"{len(bites) + errors} of what was looked at needs a remedy")


def _model(facts: TargetFacts) -> str:
    parts = (
        f"{facts.dtype} on {facts.device}",
        f"attention {facts.attention}",
        f"{facts.weight_bytes / 1e6:,.0f} MB of weights",
        f"context {facts.context_window:,}" if facts.context_window else "context unknown",
        f"pads {facts.padding_side}",
    )
    return ", ".join(part for part in parts if part)


def _section(console: Console, title: str, found: Mapping[str, Sequence[Record]], style: str, *, told: object) -> None:
    if not found:
        return
    say(console, "")
    say(console, title.upper(), style="bold")
    for name, records in found.items():
        lines = list(told(name, records))  # type: ignore[operator]
        say(console, (f"  {SYMBOLS[style]} {name:<{WIDTH}}  ", STYLES[style]), lines[0])
        for line in lines[1:]:
            say(console, f"    {'':<{WIDTH}}  {line}")


def _failed(name: str, records: Sequence[Record]) -> Iterator[str]:
    bad = [record for record in records if record.verdict.status in ("failed", "error")]
    first = bad[0].verdict
    among = f" ({len(bad)} of {len(records)} prompts)" if len(records) > 1 else ""
    yield visible(first.reason) + among
    yield from _told(first)
    if name in REMEDIES and not any(line.startswith("remedy") for line in first.details):
        yield f"remedy  {REMEDIES[name]}"


def _told(verdict: Verdict) -> list[str]:
    return plain([visible(line) for line in verdict.details], shutil.get_terminal_size().columns)


def _reason(name: str, records: Sequence[Record]) -> Iterator[str]:
    yield visible(records[0].verdict.reason)


def _bare(name: str, records: Sequence[Record]) -> Iterator[str]:
    verdict = records[0].verdict
    yield visible(verdict.reason)
    yield from _told(verdict)


def _passed(name: str, records: Sequence[Record]) -> Iterator[str]:
    good = [record for record in records if record.verdict.status == "passed"]
    more = f"; and {len(good) - 1} more prompts" if len(good) > 2 else "; and another prompt" if len(good) == 2 else ""
    yield visible(good[0].verdict.reason) + more
    hazards = dict.fromkeys(line for record in good for line in record.verdict.details if line.startswith("hazard"))
    yield from map(visible, hazards)


def _findings(console: Console, diagnosis: Diagnosis) -> None:
    say(console, "")
    say(console, "ITS FILES", style="bold")
    if diagnosis.not_looked_at:
        say(console, f"  {diagnosis.not_looked_at}")
    elif not diagnosis.findings:
        say(console, "  nothing to say")
    for finding in diagnosis.findings:
        style = STYLES[SEVERITY[finding.severity]]
        say(console, (f"  {finding.severity:<7} {finding.rule:<{WIDTH}}  ", style), visible(finding.message))
        if finding.remedy:
            say(console, f"          {'':<{WIDTH}}  remedy  {visible(finding.remedy)}")
