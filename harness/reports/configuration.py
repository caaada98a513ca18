"""What each target was asked to be and what it really was, side by side, and where they differ."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.frame import targets_frame
from harness.pins.pin import steady
from harness.record import Completion, Target, TargetFacts, to_data
from harness.store import Results
from harness.tables import encodable

NOTHING = "–"
AUTO = "auto"  # what is asked for where the choice is left to the library


@dataclass(frozen=True)
class Cell:
    """One property of one target."""

    text: str
    asked: str = ""  # where that is something else
    differs: bool = False  # from the first target


@dataclass(frozen=True)
class Row:
    """One property of all targets."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def differs(self) -> bool:
        return any(cell.differs for cell in self.cells)

    @property
    def same(self) -> bool:
        """Of several targets, so that it can be said once."""
        return len(self.cells) > 1 and len(set(self.cells)) == 1


@dataclass(frozen=True)
class Config:
    """One generation config as `generate()` resolved it on each target."""

    name: str
    targets: tuple[str, ...]
    rows: tuple[Row, ...]  # what was asked for, and what is not the same everywhere
    rest: str  # the same on every target

    @property
    def differs(self) -> bool:
        return any(row.differs or any(cell.asked for cell in row.cells) for row in self.rows)


def target_names(results: Results) -> list[str]:
    names = (
        *(target.name for target in results.targets),
        *(fact.target for fact in results.facts),
        *(record.target for record in results.records),
    )
    return list(dict.fromkeys(names))


def properties(results: Results) -> list[Row]:
    """What the targets are, as far as anything is known of them."""
    facts = {fact.target: fact for fact in results.facts}
    asked = {target.name: target for target in results.targets}
    names = target_names(results)
    columns = [_properties(asked.get(name), facts.get(name)) for name in names]
    rows = [_row(name, [column[name] for column in columns]) for name in (columns[0] if columns else ())]
    return [row for row in rows if any(cell.text != NOTHING for cell in row.cells)]


def measurements(results: Results) -> list[Row]:
    """How large and how fast the targets were, and how their checks went."""
    columns = [_measurements(row) for row in targets_frame(results).to_dict("records")]
    return [Row(name, tuple(Cell(column[name]) for column in columns)) for name in (columns[0] if columns else ())]


def configs(results: Results) -> list[Config]:
    """Each generation config that checks or a comparison used, as it was in effect."""
    names = dict(_generation_names(results))
    used: dict[str, dict[str, Completion]] = {}
    for target, done in results.completions:
        name = names.get((target, done.request.id))
        if name is not None and done.generation_config:
            used.setdefault(name, {}).setdefault(target, done)
    return [_config(name, answers) for name, answers in used.items()]


def _generation_names(results: Results) -> Iterator[tuple[tuple[str, str], str]]:
    for record in results.records:
        yield from (((record.target, request), record.generation) for request in record.requests)
    if results.measured:
        candidates = {one.name: one for one in results.measured.candidates}
        for answered in results.measured.answered:
            if answered.candidate in candidates:
                one = candidates[answered.candidate]
                yield (one.target, answered.request), one.generation


def _config(name: str, answers: Mapping[str, Completion]) -> Config:
    effective = [steady(done.generation_config) for done in answers.values()]
    asked = [to_data(done.request.generation.arguments()) for done in answers.values()]
    rows, rest = [], []
    for key in dict.fromkeys(key for config in (*asked, *effective) for key in config):
        pairs = zip(asked, effective, strict=True)
        row = _row(key, [(_said(one.get(key)) if key in one else "", _said(config.get(key))) for one, config in pairs])
        if row.differs or any(key in one for one in asked):
            rows.append(row)
        else:
            rest.append(f"{key} {row.cells[0].text}")
    return Config(name, tuple(answers), tuple(rows), ", ".join(rest))


def _row(name: str, values: Sequence[tuple[str, str | None]]) -> Row:
    """Of each target what was asked for and what it is; None where that is not known."""
    first = next((text for _, text in values if text is not None), None)
    return Row(
        name,
        tuple(
            Cell(f"{asked} (not loaded)" if asked else NOTHING)
            if text is None
            else Cell(text or NOTHING, asked if asked not in ("", AUTO, text) else "", text != first)
            for asked, text in values
        ),
    )


def _properties(target: Target | None, facts: TargetFacts | None) -> dict[str, tuple[str, str | None]]:
    """By name: what was asked for, and what is in effect."""
    asked = target.model if target else None
    # What needs no loading is in effect as soon as it is asked for.
    told: dict[str, tuple[str, str | None]] = {
        "model": ("", target.model_name if target else ""),
        "quantization": ("", target.quantization if target else ""),
        "dtype": (asked.dtype if asked else "", facts.dtype if facts else None),
        "attention": ((asked.attention or "") if asked else "", facts.attention if facts else None),
        "device": ((asked.device or "") if asked else "", facts.device if facts else None),
    }
    loaded = _loaded(facts or TargetFacts(""))
    return told | {name: ("", text if facts else None) for name, text in loaded.items()}


def _loaded(facts: TargetFacts) -> dict[str, str]:
    return {
        "modules": "\n".join(f"{count} × {kind}" for kind, count in facts.modules.items()),
        "cache": facts.cache,
        "weights": facts.weights,
        "weights digest": facts.weights_digest,
        "tokenizer": " ".join(filter(None, (facts.tokenizer, facts.tokenizer_digest))),
        "chat template": facts.template_digest or ("yes" if facts.chat_template else ""),
        "padding as shipped": facts.padding_side,
        "pad token": _pad(facts),
        "end tokens": ", ".join(map(str, facts.eos_token_ids)),
        "vocabulary": f"{facts.vocabulary:,}" if facts.vocabulary else "",
        "context window": f"{facts.context_window:,}" if facts.context_window else "",
        "shipped config": ", ".join(f"{name} {_said(value)}" for name, value in facts.generation_config.items()),
        "autocast": "on" if facts.autocast else "",
        "traits": ", ".join(facts.traits),
    }


def _pad(facts: TargetFacts) -> str:
    if facts.pad_token_id is None:
        return ""
    return f"{facts.pad_token_id} from {facts.pad_token_from}" if facts.pad_token_from else str(facts.pad_token_id)


def _measurements(row: Mapping[Any, Any]) -> dict[str, str]:
    return {
        "weights, MB": _number(row["weight_mb"]),
        "load, s": _number(row["load_seconds"]),
        "peak memory, MB": _number(row["peak_memory_mb"]),
        "tokens/s": _number(row["tokens_per_second"]),
        "checks passed": f"{row['passed']}/{row['checks']}",
    }


def _number(value: float) -> str:
    if math.isnan(value):
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _said(value: Any) -> str:
    if value is None:
        return ""
    return str(encodable(value)) if isinstance(value, str) else json.dumps(to_data(value), default=str)
