"""Any model, without a suite: lint of its files, every invariant, what bare calls do. And a suite made from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import backends
from harness.answers import Kept, Observer, Quiet
from harness.backends import Backend
from harness.files import ModelFiles, find
from harness.inputs import Model
from harness.lint import Finding, lint_model
from harness.load import Loaded
from harness.plan import plan
from harness.record import Record, Target, TargetFacts
from harness.runner import Runner
from harness.suite import Suite

NEW_TOKENS = 24
PLAIN: Mapping[str, Any] = {"counting": "1, 2, 3, 4, 5,", "story": "Once upon a time there was a"}
CHAT: Mapping[str, Any] = {
    "question": {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    "colours": {"messages": [{"role": "user", "content": "Name three colours."}]},
}


@dataclass(frozen=True)
class Diagnosis:
    """What was found about one model."""

    name: str
    facts: TargetFacts
    records: tuple[Record, ...]
    findings: tuple[Finding, ...]
    not_looked_at: str  # why its files could not be linted; "" when they were

    def by_expectation(self, *outcomes: str) -> dict[str, list[Record]]:
        """The expectations whose worst verdict over all prompts is one of these, with all their records."""
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record.expectation or "loading", []).append(record)
        order = ("error", "failed", "passed", "skipped")
        worst = {name: min((one.verdict.status for one in some), key=order.index) for name, some in found.items()}
        return {name: some for name, some in found.items() if worst[name] in outcomes}

    @property
    def healthy(self) -> bool:
        """Nothing of what was tried failed, and no file of the model is wrong."""
        return not self.by_expectation("failed", "error") and all(one.severity != "error" for one in self.findings)


def diagnose(model: Model, name: str, observer: Observer | None = None) -> Diagnosis:
    """Load the model and look at it from all sides."""
    observer = observer or Quiet()
    target = Target(name, name, model)
    backend = backends.load(target, progress=observer.says)
    try:
        files = find(model)  # after loading: what had to be fetched or converted is there now
        data = suite(model, name, backend.facts)
        return Diagnosis(
            name=name,
            facts=backend.facts,
            records=judge(data, backend, observer),
            findings=tuple(lint_model(files)) if isinstance(files, ModelFiles) else (),
            not_looked_at=files if isinstance(files, str) else "",
        )
    finally:
        backend.close()


def judge(data: Mapping[str, Any], backend: Backend, observer: Observer) -> tuple[Record, ...]:
    """The verdicts of a suite that stands in no file, on a model that is loaded already."""
    made = Suite.model_validate(data)
    loaded = Loaded(made, made.suite, dict.fromkeys((test.name for test in made.tests), 0))
    runner = Runner(plan([loaded]).checks, observer, load=lambda *_, **__: Kept(backend))
    return tuple(record for judged in runner.run() for record in judged.records)


def suite(model: Model, name: str, facts: TargetFacts) -> dict[str, Any]:
    """Everything that can be asked of a model that nothing is known about, as a suite has it."""
    plain, chat = list(PLAIN), list(CHAT) if facts.chat_template else []
    every = [*plain, *chat]
    one_each = [plain[0], *chat[:1]]
    tests = [
        _test("repeats-exactly", every, deterministic=True),
        _test("same-tokens-every-way", one_each, invariants="all"),
        _test("padding-as-shipped", plain[:1], padding_invariant={"side": "shipped"}),
        _test("prompt-arrives-as-meant", one_each, prompt=True),
        _test("configuration", one_each, config=True),
        _test("bare-calls", plain[:1], bare_call=True),
        _test("output-is-sound", every, not_empty=True, no_repetition=True, nothing_after_eos=True),
        _test("sampling", plain[:1], generation="sampled", seeded=True, processor_order=True),
    ]
    if chat:
        tests.append(_test("stops-by-itself", chat, generation="long", stops_at_eos=True))
    greedy = {"do_sample": False, "max_new_tokens": NEW_TOKENS}
    return {
        "suite": name,
        "models": {name: model.model_dump(mode="json", exclude_defaults=True)},
        "generation": {
            "greedy": greedy,
            "long": greedy | {"max_new_tokens": 5 * NEW_TOKENS},
            "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "seed": 1, "max_new_tokens": NEW_TOKENS},
        },
        "prompts": {**PLAIN, **(CHAT if chat else {})},
        "tests": tests,
    }


def _test(name: str, prompts: Sequence[str], generation: str = "", **expect: Any) -> dict[str, Any]:
    named = {"generation": generation} if generation else {}
    return {"name": name, "prompts": list(prompts), **named, "expect": expect}
