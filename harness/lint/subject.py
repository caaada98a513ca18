"""What a rule looks at: the files of one model, and how suites use it. And what it says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from harness.file_pipeline import FilePipeline
from harness.files import DEFAULTS, ModelFiles
from harness.inputs import Generation, Message, Model
from harness.plan import Check
from harness.record import Rendering, Text
from harness.rendering import TemplateFailed, describe

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SAMPLES = (Text(messages=(Message(role="user", content="Hello"),)), Text(text="Hello"))
DEFAULT_NEW_TOKENS = 20  # that the library generates when nobody says how many


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, will bite, or is good to know; and what to type."""

    severity: Severity
    message: str
    remedy: str
    where: str  # file:line of a suite, or a file of the model
    rule: str = ""
    catches: tuple[str, ...] = ()  # rows of docs/behaviours.md


@dataclass(frozen=True)
class Use:
    """One prompt of a test, as it is run on the model."""

    where: str  # file:line of the test
    test: str
    prompt: str
    text: Text
    generation: Generation
    generation_name: str
    model: Model

    def __str__(self) -> str:
        return f"prompt {self.prompt!r} of test {self.test!r}"


@dataclass(frozen=True)
class Subject:
    """The files of a model, and every use that suites make of it; no use when there is no suite."""

    files: ModelFiles
    uses: tuple[Use, ...] = ()
    _seen: dict[Text, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def pipeline(self) -> FilePipeline | None:
        """None where the tokenizer cannot be read."""
        return None if isinstance(self.files.backend, str) else FilePipeline(self.files)

    @property
    def prompts(self) -> Iterator[tuple[str, str, Rendering | str]]:
        """Where a prompt stands, what it is called, and what becomes of it or why nothing does."""
        if self.pipeline is None:
            return
        if not self.uses:
            sample = SAMPLES[0] if self.pipeline.has_template else SAMPLES[1]
            yield self.files.template_file or "tokenizer.json", "any prompt", self._rendering(self.pipeline, sample)
        for use in self.uses:
            if use.text.messages is None or self.pipeline.has_template:
                yield use.where, str(use), self._rendering(self.pipeline, use.text)

    def _rendering(self, pipeline: FilePipeline, text: Text) -> Rendering | str:
        if text not in self._seen:
            try:
                self._seen[text] = describe(pipeline, text)
            except (TemplateFailed, TypeError) as error:  # the tokenizer refuses lone surrogates and the like
                self._seen[text] = f"{error}"
        seen: Rendering | str = self._seen[text]
        return seen

    def length(self, use: Use) -> int | None:
        """Tokens of the prompt; None where it cannot be told."""
        if self.pipeline is None or (use.text.messages is not None and not self.pipeline.has_template):
            return None
        seen = self._rendering(self.pipeline, use.text)
        return None if isinstance(seen, str) else len(seen.ids)

    def new_tokens(self, use: Use) -> int:
        """At most so many come: by the suite, by the model's own configuration, or by default."""
        own = self.files.generation.get("max_new_tokens")
        return use.generation.max_new_tokens or (own if isinstance(own, int) else DEFAULT_NEW_TOKENS)

    @cached_property
    def longest(self) -> tuple[Use, int] | None:
        """The use that needs most room, and how much: its prompt and all new tokens."""
        sizes = [(use, length + self.new_tokens(use)) for use in self.uses if (length := self.length(use)) is not None]
        return max(sizes, key=lambda one: one[1], default=None)


def uses(checks: Iterable[Check]) -> tuple[Use, ...]:
    """Every prompt of every test, once for each way that the model is loaded; known failures are known."""
    found = [
        Use(f"{check.file}:{check.line}", check.test.name, case.name, case.request.prompt, case.request.generation,
            check.test.generation, check.target.model)
        for check in checks if not check.skip and not check.xfails
        for case in check.cases
    ]  # fmt: skip
    return tuple(dict.fromkeys(found))


def places(where: Iterable[str | Use]) -> str:
    """The first place, and how many more there are."""
    every = list(dict.fromkeys(one.where if isinstance(one, Use) else one for one in where))
    more = f" and {len(every) - 1} more" if len(every) > 1 else ""
    return f"{every[0]}{more}" if every else ""


def active(config: Mapping[str, Any], names: Iterable[str] = DEFAULTS) -> dict[str, Any]:
    """The arguments of generate() that a configuration sets to something else than “unset”."""
    return {name: config[name] for name in names if config.get(name) is not None and config[name] != DEFAULTS.get(name)}


def told(values: Mapping[str, Any]) -> str:
    """temperature 0.6 and top_p 0.9"""
    return listed([f"{name} {value}" for name, value in values.items()])


def listed(words: Sequence[str], most: int = 4) -> str:
    """a, b and c; of many only the first."""
    words = [*words[:most], f"{len(words) - most} more"] if len(words) > most else list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
