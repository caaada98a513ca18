"""Computes a metric by its name: one of our own, a file of the user's, or one from the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from tempfile import TemporaryDirectory
from typing import Any

import evaluate
from datasets import Value
from huggingface_hub import constants

from harness.errors import CannotRun
from harness.expectations.metrics import HUB, label
from harness.expectations.metrics.scores import CLASSES

Pairs = Sequence[tuple[str, Sequence[str]]]  # outputs, each with its references


def score(name: str, pairs: Pairs, *, key: str, lower_is_better: bool, arguments: Mapping[str, Any]) -> float:
    """One number for all of these outputs together."""
    metric = _metric(name)
    kinds = _kinds_of_references(metric)
    if kinds and not all(references for _, references in pairs):
        raise CannotRun("it compares with references, and the suite gives none; write `references:`")

    def value(texts: Sequence[str], references: Sequence[Any]) -> float:
        inputs = {"predictions": texts, "references": references} if kinds else {"predictions": texts}
        return _number(metric.compute(**inputs, **arguments), key, label(name))

    def best(text: str, references: Sequence[str]) -> str:
        pick = min if lower_is_better else max
        return references[0] if len(references) == 1 else pick(references, key=lambda one: value([text], [one]))

    takes_one = kinds and all(isinstance(kind, Value) for kind in kinds)
    return value([text for text, _ in pairs], [best(*pair) if takes_one else list(pair[1]) for pair in pairs])


def each_score(
    name: str, pairs: Pairs, *, key: str, lower_is_better: bool, arguments: Mapping[str, Any]
) -> list[float]:
    """What every output gets by itself."""
    metric = _metric(name)
    if name in CLASSES:  # without the detour of all of evaluate, which costs milliseconds each time
        results = (
            metric._compute(predictions=[text], references=[list(wanted)], **arguments) for text, wanted in pairs
        )
        return [_number(result, key, name) for result in results]
    return [score(name, [pair], key=key, lower_is_better=lower_is_better, arguments=arguments) for pair in pairs]


def _kinds_of_references(metric: evaluate.EvaluationModule) -> list[Any]:
    """What the metric takes as references of one output: a value or a list; several kinds where it has a choice."""
    options = metric.features if isinstance(metric.features, list) else [metric.features]
    return [option["references"] for option in options if "references" in option]


def _number(result: Any, key: str, name: str) -> float:
    """The value that counts; where the metric gives one for each output, their mean."""
    if not isinstance(result, Mapping) or not result:
        raise CannotRun("it gives no results by name")
    keys = list(map(str, result))
    wanted = key or (name if name in keys or len(keys) > 1 else keys[0])
    if wanted not in result:
        raise CannotRun(f"it gives {', '.join(keys)}; choose one of them with `key:`")
    found = result[wanted]
    values = found if isinstance(found, (list, tuple)) else [found]
    if not values or not all(hasattr(value, "__float__") for value in values):
        raise CannotRun(f"its {wanted} is not a number but {found!r:.100}")
    return sum(map(float, values)) / len(values)


def _metric(name: str) -> evaluate.EvaluationModule:
    found = _opened(name)
    if isinstance(found, CannotRun):
        raise found
    return found


@lru_cache(maxsize=32)
def _opened(name: str) -> evaluate.EvaluationModule | CannotRun:
    """The metric, or why there is none: that is kept too, so that the Hub is not waited for at every prompt."""
    if name in CLASSES:
        with TemporaryDirectory() as folder:  # evaluate makes folders even for what stays in memory
            return CLASSES[name](cache_dir=folder, keep_in_memory=True)
    if name.startswith(HUB):
        path, how = name.removeprefix(HUB), {"module_type": "metric"}
        remedy = f"could not be fetched from the Hub; save its code as a file of your own, ./{label(name)}.py"
    elif os.path.exists(name):
        path, how = name, {}
        remedy = "the file must `import evaluate` and define one class derived from evaluate.Metric"
    else:
        return CannotRun(f"there is no file {name}; the path is relative to the suite")
    try:
        with _quiet():
            return evaluate.load(path, keep_in_memory=True, **how)
    except Exception as error:
        return CannotRun(remedy, f"{type(error).__name__}: {error}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, without counting downloads, and without the network where the Hub is switched off."""
    config, bars = evaluate.config, evaluate.logging.is_progress_bar_enabled()
    before = config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_EVALUATE_OFFLINE
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    config.HF_EVALUATE_OFFLINE = before[1] or constants.HF_HUB_OFFLINE
    evaluate.logging.disable_progress_bar()
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_EVALUATE_OFFLINE = before
        if bars:
            evaluate.logging.enable_progress_bar()
