"""Rules about prompts: what chat template and tokenizer make of those of the suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from harness.expectations.hazards import Problem, hazards
from harness.expectations.prompting import PromptPipeline, problems
from harness.lint.subject import Finding, Severity, Subject, places
from harness.record import Rendering

# That the ids have room is told by rules of their own, with more of the files in view.
SETTINGS = PromptPipeline(fits=False)
# Problems that are no certain fault of the suite; all others are errors.
WARNINGS = ("same_on_any_date", "round_trip", "continues")
BITING = ("double_bos",)  # of the hazards: half of all careless code falls into it


def template(subject: Subject) -> Iterator[Finding]:
    """Messages need a chat template; plain text goes without it."""
    files, pipeline = subject.files, subject.pipeline
    if pipeline is None:
        return
    chats = [use for use in subject.uses if use.text.messages is not None]
    plain = [use for use in subject.uses if use.text.messages is None]
    if files.template_file == "chat_template.json":
        yield Finding(
            "warning",
            "the only chat template stands in chat_template.json, which processors read and tokenizers do not",
            'Copy its text into chat_template.jinja, or into "chat_template" of tokenizer_config.json',
            "chat_template.json",
        )
    if chats and not pipeline.has_template:
        yield Finding(
            "error",
            f"{chats[0]} has messages, but the tokenizer has no chat template",
            "Write the prompt as plain text, or take the model's instruct variant",
            places(chats),
        )
    if plain and pipeline.has_template:
        yield Finding(
            "note",
            f"{plain[0]} is plain text: the chat template is not applied to it",
            "Write `messages: [{role: user, content: …}]`, if a turn of a chat is meant",
            places(plain),
        )


def ids(subject: Subject) -> Iterator[Finding]:
    """Every prompt can be rendered, and its ids have embeddings."""
    rows = subject.files.embeddings
    wrong = [(where, f"{name} {why}") for where, name, seen in subject.prompts if (why := _wrong_ids(seen, rows))]
    if wrong:
        remedy = (
            "Many templates refuse a system message, or turns that do not alternate; an empty prompt needs text; "
            "ids beyond the embedding are those of another model's tokenizer"
        )
        yield Finding("error", wrong[0][1], remedy, places(where for where, _ in wrong))


def _wrong_ids(seen: Rendering | str, rows: int | None) -> str:
    if isinstance(seen, str):
        return f"cannot be turned into ids: {seen}"
    if not seen.ids and not seen.text:
        return "is empty: there is no token to start from"
    if rows is not None and max(seen.ids, default=0) >= rows:
        return f"has id {max(seen.ids)}, but the model has {rows} embeddings"
    return ""


def sound(subject: Subject) -> Iterator[Finding]:
    """What `prompt` would fail on."""
    for kind in _kinds(subject, lambda seen: problems(seen, SETTINGS)):
        certain = any(problem.name not in WARNINGS or (problem.name == "continues" and seen.continues)
                      for _, problem, seen in kind.met)  # fmt: skip
        name = f"{kind.met[0][0]}: " if subject.uses else ""
        yield kind.finding("error" if certain else "warning", name)


def careless(subject: Subject) -> Iterator[Finding]:
    """What careless code around the same model and tokenizer falls into; most of it with any prompt."""
    for kind in _kinds(subject, hazards):
        if kind.name != "pad_in_prompt":
            kind.where = [subject.files.template_file or "tokenizer.json"]
        yield kind.finding("warning" if kind.name in BITING else "note", "")


@dataclass
class _Kind:
    """One kind of problem, and every prompt that has it."""

    name: str
    where: list[str] = field(default_factory=list)
    met: list[tuple[str, Problem, Rendering]] = field(default_factory=list)  # name of the prompt, what, of which

    def finding(self, severity: Severity, about: str) -> Finding:
        problem = self.met[0][1]
        return Finding(severity, f"{about}{problem.sentence}", problem.remedy, places(self.where))


def _kinds(subject: Subject, judge: Callable[[Rendering], Sequence[Problem]]) -> Iterable[_Kind]:
    """Each kind of problem once: an encoder reads its prompt whole, and is not asked."""
    found: dict[str, _Kind] = {}
    for where, name, seen in () if subject.files.encoder_decoder else subject.prompts:
        if isinstance(seen, str):
            continue
        for problem in judge(seen):
            kind = found.setdefault(problem.name, _Kind(problem.name))
            kind.where.append(where)
            kind.met.append((name, problem, seen))
    return found.values()
