"""The metrics themselves, as subclasses of `evaluate.Metric`.

Imports evaluate, which takes seconds: for those who compute, not for those who read suites.
To add one: write a class, add it to CLASSES here, and say what it gives in OWN of this package.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import evaluate
from datasets import Features, Value

from harness.expectations.metrics.alignment import edit_distance, in_common

ARTICLES = re.compile(r"\b(a|an|the)\b")
WORDS = re.compile(r"[^\W_]+")


class TextMetric(evaluate.Metric):  # type: ignore[misc]
    """Outputs against references, of which every output may have several."""

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("string"), "references": [Value("string")]})
        return evaluate.MetricInfo(description=self.__doc__ or "", citation="", features=features)


class Mean(TextMetric):
    """The mean over all outputs of what an output gets for the reference that suits it best."""

    lower_is_better = False

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], **arguments: Any
    ) -> dict[str, float]:
        best = [self._best(*pair, **arguments) for pair in zip(predictions, references, strict=True)]
        return {key: sum(scores[key] for scores in best) / len(best) for key in best[0]}

    def _best(self, text: str, references: Sequence[str], **arguments: Any) -> Mapping[str, float]:
        scores = [self.score(text, reference, **arguments) for reference in references]
        pick = min if self.lower_is_better else max
        return pick(scores, key=lambda found: next(iter(found.values())))

    def score(self, text: str, reference: str) -> Mapping[str, float]:
        """One output against one reference; the first value is the one that decides."""
        raise NotImplementedError


class ExactMatch(Mean):
    """1 for an output that is its reference, 0 for any other."""

    def score(self, text: str, reference: str, *, normalize: bool = False) -> Mapping[str, float]:
        if normalize:
            text, reference = normalized(text), normalized(reference)
        return {"exact_match": float(text == reference)}


class TokenF1(Mean):
    """Words that output and reference share, as the harmonic mean of precision and recall."""

    def score(self, text: str, reference: str, *, normalize: bool = True) -> Mapping[str, float]:
        if normalize:
            text, reference = normalized(text), normalized(reference)
        said, wanted = text.split(), reference.split()
        shared = (Counter(said) & Counter(wanted)).total()
        return _f1("token_f1", shared, len(said), len(wanted))


class EditDistance(Mean):
    """Characters to insert, delete or replace to make the reference of the output."""

    lower_is_better = True

    def score(self, text: str, reference: str) -> Mapping[str, float]:
        distance = edit_distance(text, reference)
        return {"edit_distance": distance, "normalized": distance / (max(len(text), len(reference)) or 1)}


class RougeL(Mean):
    """The longest sequence of words that output and reference have in common, case and punctuation aside."""

    def score(self, text: str, reference: str) -> Mapping[str, float]:
        said, wanted = WORDS.findall(text.lower()), WORDS.findall(reference.lower())
        return _f1("rouge_l", in_common(said, wanted), len(said), len(wanted))


class ChrF(TextMetric):
    """Character n-grams that outputs and references share, 0 to 100, as sacrebleu computes it."""

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], **arguments: Any
    ) -> dict[str, float]:
        from sacrebleu.metrics import CHRF

        return {"chrf": CHRF(**arguments).corpus_score(predictions, _streams(references)).score}


class Bleu(TextMetric):
    """Word n-grams of outputs that are in references, 0 to 100, as sacrebleu computes it.

    A single output may be shorter than four words: only the orders that it has are counted there.
    """

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], **arguments: Any
    ) -> dict[str, float]:
        from sacrebleu.metrics import BLEU

        defaults = {"force": True, "effective_order": len(predictions) == 1}
        return {"bleu": BLEU(**(defaults | arguments)).corpus_score(predictions, _streams(references)).score}


CLASSES: Mapping[str, type[TextMetric]] = {
    "exact_match": ExactMatch,
    "token_f1": TokenF1,
    "edit_distance": EditDistance,
    "rouge_l": RougeL,
    "chrf": ChrF,
    "bleu": Bleu,
}


def normalized(text: str) -> str:
    """Lower case, without punctuation and English articles, single spaces."""
    text = text.lower()
    punctuation = {ord(sign): None for sign in set(text) if _is_punctuation(sign)}
    return " ".join(ARTICLES.sub(" ", text.translate(punctuation)).split())


def _is_punctuation(sign: str) -> bool:
    return unicodedata.category(sign)[0] == "P" or sign in "$+<=>^`|~"


def _f1(name: str, shared: int, said: int, wanted: int) -> Mapping[str, float]:
    """Two texts without a word are the same; one without a word shares nothing."""
    if not said or not wanted:
        return dict.fromkeys((name, "precision", "recall"), float(said == wanted == 0))
    return {name: 2 * shared / (said + wanted), "precision": shared / said, "recall": shared / wanted}


def _streams(references: Sequence[Sequence[str]]) -> list[tuple[str | None, ...]]:
    """First references, second references and so on, as sacrebleu wants them; None where there are fewer."""
    return list(zip_longest(*references))
