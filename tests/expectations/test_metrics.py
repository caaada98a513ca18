"""Text metrics: scores worked out by hand or computed in another way, and what suites and reports see of them."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import evaluate
import pytest
import sacrebleu
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from harness.expectations import Expectation, Group, fill
from harness.expectations.metrics import OWN, Metric, Metrics, computing
from harness.expectations.metrics.alignment import edit_distance, in_common
from harness.expectations.metrics.scores import CLASSES, normalized
from harness.record import Completion, Request, Text, Verdict

Judge = Callable[..., Verdict]
MAT = "the cat sat on the mat", "the cat sat on a mat"


@pytest.fixture
def judge(completion: Callable[..., Completion]) -> Judge:
    """The verdict on one output."""

    def judged(text: str, **written: Any) -> Verdict:
        return Metric.model_validate(written).judge([completion(text=text)])

    return judged


@pytest.fixture
def judge_set(completion: Callable[..., Completion]) -> Judge:
    """The verdict on outputs, each with its reference."""

    def judged(pairs: list[tuple[str, Any]], **written: Any) -> Verdict:
        metrics = [Metric.model_validate({**written, "over": "set", "references": wanted}) for _, wanted in pairs]
        outputs = [
            completion(text=text, request=Request(Text(text=f"prompt {number}"), completion().request.generation))
            for number, (text, _) in enumerate(pairs)
        ]
        return metrics[0].judge_set([(metric, [output]) for metric, output in zip(metrics, outputs, strict=True)])

    return judged


@pytest.mark.parametrize(
    ("written", "text", "references", "score"),
    [
        ({"name": "exact_match"}, " Paris\n", "Paris ", 1),
        ({"name": "exact_match"}, "paris", "Paris", 0),
        ({"name": "exact_match"}, "Rome", ["Paris", "Rome"], 1),
        ({"name": "exact_match", "normalize": True}, "The  Eiffel Tower!", "eiffel tower", 1),
        ({"name": "exact_match", "normalize": True}, "then", "n", 0),  # articles are words of their own
        # of four words said two are wanted, of two wanted both are said: 2 · ½ · 1 / (½ + 1)
        ({"name": "token_f1"}, "It is Paris, France.", "paris france", 2 / 3),
        ({"name": "token_f1", "key": "precision"}, "It is Paris, France.", "paris france", 1 / 2),
        ({"name": "token_f1", "key": "recall"}, "It is Paris, France.", "paris france", 1),
        ({"name": "token_f1", "normalize": False}, "It is Paris, France.", "paris france", 0),
        ({"name": "token_f1"}, "no no no", "no no yes", 4 / 6),  # a word counts as often as both say it
        ({"name": "token_f1"}, "It is Paris", ["Rome", "it is paris"], 1),
        ({"name": "edit_distance"}, "kitten", "sitting", 3),
        ({"name": "edit_distance", "key": "normalized"}, "kitten", "sitting", 3 / 7),
        ({"name": "edit_distance"}, "kitten", ["sitting", "kitchen"], 2),
        # in common: the cat on mat, 4 of 6 and 4 of 5 words
        ({"name": "rouge_l"}, "The cat sat on the mat.", "the cat on a mat", 8 / 11),
        ({"name": "rouge_l", "key": "precision"}, "The cat sat on the mat.", "the cat on a mat", 4 / 6),
        ({"name": "rouge_l", "key": "recall"}, "The cat sat on the mat.", "the cat on a mat", 4 / 5),
        # of one, two and three characters: 2 of 3, 1 of 2, 0 of 1
        ({"name": "chrf"}, "abc", "abd", 100 * (2 / 3 + 1 / 2 + 0) / 3),
        ({"name": "chrf"}, "abc", ["xyz", "abd"], 100 * (2 / 3 + 1 / 2 + 0) / 3),
        ({"name": "chrf", "arguments": {"char_order": 2}}, "abc", "abd", 100 * (2 / 3 + 1 / 2) / 2),
        ({"name": "bleu"}, *MAT, 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)),
        ({"name": "bleu"}, "the cat", "the cat", 100),  # of the orders that it has
        ({"name": "bleu"}, "the cat", "the cat sat on", 100 * math.exp(1 - 4 / 2)),  # too short
        ({"name": "bleu", "arguments": {"max_ngram_order": 1}}, *MAT, 100 * 5 / 6),
    ],
)
def test_scores_are_those_worked_out_by_hand(
    judge: Judge, written: dict[str, Any], text: str, references: Any, score: float
) -> None:
    verdict = judge(text, **written, references=references, min=0)

    assert verdict.status == "passed"
    assert verdict.numbers["metric"] == pytest.approx(score)


def distance_by_table(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for number, left in enumerate(one, start=1):
        above, row = row, [number]
        for place, right in enumerate(other):
            row.append(min(above[place + 1] + 1, row[place] + 1, above[place] + (left != right)))
    return row[-1]


def in_common_by_trying(one: str, other: str) -> int:
    @cache
    def longest(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        return 1 + longest(i + 1, j + 1) if one[i] == other[j] else max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


def test_alignment_agrees_with_plain_tables() -> None:
    chance = random.Random(0)
    for alphabet in ("ab", "abcd", "aß語🙂"):
        for _ in range(300):
            one, other = ("".join(chance.choices(alphabet, k=chance.randint(0, 12))) for _ in range(2))
            assert edit_distance(one, other) == distance_by_table(one, other), (one, other)
            assert in_common(one, other) == in_common_by_trying(one, other), (one, other)
    long, longer = ("".join(chance.choices("abcd", k=length)) for length in (150, 333))
    assert edit_distance(long, longer) == distance_by_table(long, longer)
    assert in_common(long, longer) == in_common_by_trying(long, longer)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("The cat's hat, a U.S. one", "cats hat us one"),
        ("“Être ou   ne pas être”…", "être ou ne pas être"),
        ("A $5 co-op & the rest", "5 coop rest"),
        ("theatre an", "theatre"),
    ],
)
def test_normalizing_drops_case_punctuation_and_articles(written: str, wanted: str) -> None:
    assert normalized(written) == wanted


PAIRS = [
    ("the cat sat on the mat", "the cat sat on a mat"),
    ("no", "yes"),
    ("it is raining cats and dogs today", ["cats and dogs it rains", "it is raining today"]),
]


def test_bleu_and_chrf_of_a_set_are_those_of_the_corpus(judge_set: Judge) -> None:
    outputs = [text for text, _ in PAIRS]
    streams = [["the cat sat on a mat", "yes", "cats and dogs it rains"], [None, None, "it is raining today"]]

    bleu = judge_set(PAIRS, name="bleu", min=0).numbers["metric"]
    chrf = judge_set(PAIRS, name="chrf", min=0, arguments={"word_order": 2}).numbers["metric"]

    assert bleu == pytest.approx(sacrebleu.corpus_bleu(outputs, streams).score)
    assert chrf == pytest.approx(sacrebleu.corpus_chrf(outputs, streams, word_order=2).score)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("exact_match", (1 + 1 + 0) / 3),
        ("token_f1", (1 + 1 + 2 / 4) / 3),
        ("edit_distance", (0 + 0 + 7) / 3),
        ("rouge_l", (1 + 1 + 2 / 4) / 3),
    ],
)
def test_other_scores_of_a_set_are_means(judge_set: Judge, name: str, score: float) -> None:
    verdict = judge_set([("Paris", "Paris"), ("Rome", ["Roma", "Rome"]), ("it was Bonn", "Bonn")], name=name, min=0)

    assert verdict.numbers == {"metric": pytest.approx(score), "min": 0, "prompts": 3}


@pytest.mark.parametrize(
    ("bounds", "status", "reason"),
    [
        ({"min": 3}, "passed", "edit_distance 3, at least 3 wanted"),
        ({"min": 4}, "failed", "edit_distance 3, at least 4 wanted"),
        ({"max": 3}, "passed", "edit_distance 3, at most 3 wanted"),
        ({"max": 2}, "failed", "edit_distance 3, at most 2 wanted"),
        ({"min": 1, "max": 2}, "failed", "edit_distance 3, at least 1 and at most 2 wanted"),
    ],
)
def test_the_bounds_belong_to_what_is_wanted(judge: Judge, bounds: dict[str, int], status: str, reason: str) -> None:
    verdict = judge("kitten", name="edit_distance", references="sitting", **bounds)

    assert (verdict.status, verdict.reason) == (status, reason)
    assert verdict.numbers == {"metric": 3, **bounds}


def test_a_failure_shows_the_output_and_what_was_wanted(judge: Judge) -> None:
    verdict = judge("a\nb", name="rouge_l", key="recall", references=["c", "d", "e", "f"], min=0.5)

    assert verdict.reason == "rouge_l recall 0, at least 0.5 wanted"
    assert verdict.details == (
        "output     'a\\nb'",
        "reference  'c'",
        "reference  'd'",
        "reference  'e'",
        "           and 1 more",
    )


def test_a_score_is_not_rounded_onto_the_bound_that_it_misses(judge_set: Judge) -> None:
    pairs = [("yes", "yes")] * 1999 + [("no", "yes")] * 501

    verdict = judge_set(pairs, name="exact_match", min=0.8)

    assert verdict.reason == "exact_match 0.7996 over 2,500 prompts, at least 0.8 wanted"


@pytest.mark.parametrize(
    ("written", "worst"),
    [
        ({"name": "token_f1", "min": 0.9}, ["0 at 'prompt 1'", "0.4 at 'prompt 3'", "0.5 at 'prompt 0'"]),
        ({"name": "edit_distance", "max": 1}, ["16 at 'prompt 3'", "7 at 'prompt 0'", "3 at 'prompt 1'"]),
    ],
)
def test_a_failure_over_a_set_shows_the_worst_prompts(
    judge_set: Judge, written: dict[str, Any], worst: list[str]
) -> None:
    pairs = [("it was Bonn", "Bonn"), ("red", "big"), ("Rome", "Rome"), ("Oslo in north Norway", "Oslo")]
    verdict = judge_set(pairs, **written)

    assert verdict.status == "failed"
    worst = [f"{written['name']} {line}" for line in worst]
    assert [line for line in verdict.details if not line.startswith(" ")] == worst
    at = verdict.details.index(next(line for line in worst if line.endswith("'prompt 1'")))
    assert verdict.details[at + 1 : at + 3] == ("  output     'red'", "  reference  'big'")


def test_exact_match_says_when_normalizing_would_do(judge: Judge) -> None:
    written = {"name": "exact_match", "references": "Paris", "min": 1}

    assert "`normalize: true`" in judge("paris.", **written).details[0]
    assert len(judge("Rome", **written).details) == 2


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    ("text", "reference"), [("", ""), ("", "Paris"), ("Paris", ""), (" \n", "…"), ("🙂é語", "é語🙂")]
)
def test_empty_and_unusual_texts_are_scored(judge: Judge, name: str, text: str, reference: str) -> None:
    verdict = judge(text, name=name, references=reference, min=0)

    assert verdict.status == "passed", verdict.reason
    assert math.isfinite(float(verdict.numbers["metric"]))


@pytest.mark.parametrize("name", ["exact_match", "token_f1", "rouge_l"])
def test_nothing_for_nothing_is_right_and_nothing_for_something_wrong(judge: Judge, name: str) -> None:
    assert judge(" ", name=name, references="", min=1).status == "passed"
    assert judge("", name=name, references="Paris", min=0).numbers["metric"] == 0
    assert judge("Paris", name=name, references="", min=0).numbers["metric"] == 0


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(
    "alphabet", ["ab \n", "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))], ids=["letters", "signs"]
)
def test_megabytes_are_scored_in_seconds(judge: Judge, name: str, alphabet: str) -> None:
    chance = random.Random(1)
    text, reference = ("".join(chance.choices(alphabet, k=1_000_000)) for _ in range(2))
    began = time.process_time()
    verdict = judge(text, name=name, references=reference, min=0)

    assert time.process_time() - began < 2
    assert verdict.status == "passed", verdict.reason
    longest = OWN[name].longest
    assert "characters" not in verdict.reason if longest is None else f"first {longest:,} characters" in verdict.reason


def test_columns_of_the_row_are_filled_into_every_reference() -> None:
    written = {"name": "chrf", "min": 40, "references": ["{answer}", "It is {answer}"]}
    members = Metrics.model_validate(written).members()
    filled = fill(members["metric-chrf"], {"answer": "Paris"})

    assert isinstance(filled, Metric)
    assert filled.references == ("Paris", "It is Paris")


def test_each_metric_of_a_list_is_an_expectation_with_a_name_of_its_own() -> None:
    chrf = {"name": "chrf", "min": 40, "references": "x"}
    mine = {"name": "sub/my.metric.py", "max": 1}
    metrics = Metrics.model_validate([chrf, mine, {**chrf, "over": "set"}, {"name": "hub:me/chrf", "min": 1}])
    members = metrics.members()

    assert isinstance(metrics, Group)
    assert list(members) == ["metric-chrf", "metric-my.metric", "metric-chrf-2", "metric-chrf-3"]
    assert [one.over_set for one in members.values()] == [False, False, True, False]
    assert all(isinstance(one, Expectation) for one in members.values())
    assert len({hash(one) for one in members.values()}) == 4


def test_the_path_of_a_file_is_relative_to_the_suite(tmp_path: Path) -> None:
    def located(name: str) -> str:
        return Metric.model_validate({"name": name, "min": 1, "references": "x"}).located(str(tmp_path)).name

    assert located("./mine.py") == str(tmp_path / "mine.py")
    assert located("../mine.py") == str(tmp_path.parent / "mine.py")
    assert [located(name) for name in ("chrf", "hub:me/chrf", "/mine.py")] == ["chrf", "hub:me/chrf", "/mine.py"]


CHRF = {"name": "chrf", "min": 40, "references": "x"}
EXACT = {"name": "exact_match", "min": 1, "references": "x"}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("chrf", "a mapping such as {name: chrf"),
        (True, "a mapping such as {name: chrf"),
        (["chrf"], "a mapping such as {name: chrf"),
        ([], "at least 1 item"),
        ({**CHRF, "name": "chrff"}, "'chrff'; did you mean 'chrf'?"),
        ({**CHRF, "name": "BLEU"}, "did you mean 'bleu'?"),
        ({**CHRF, "name": "bertscore"}, "hub:bertscore"),
        ({**CHRF, "name": "hub:"}, "no metric is called 'hub:'"),
        ({**CHRF, "minimum": 1}, "Extra inputs"),
        ({"name": "chrf", "references": "x"}, "give min, max or both"),
        ({**CHRF, "max": 20}, "min is above max"),
        ({"name": "chrf", "min": 40}, "write `references:`"),
        ({**EXACT, "min": 80}, "min: 80 is out of reach: exact_match is between 0 and 1"),
        ({**EXACT, "min": 0, "max": -1}, "min is above max"),
        ({"name": "exact_match", "max": -1, "references": "x"}, "max: -1 is out of reach"),
        ({**EXACT, "name": "rouge_l", "key": "f1"}, "rouge_l gives no 'f1'; there are: rouge_l, precision, recall"),
        ({**EXACT, "name": "edit_distance", "key": "normalized", "min": 2}, "normalized is between 0 and 1"),
        ({**EXACT, "name": "edit_distance", "normalize": True}, "exact_match and token_f1 do"),
        ({**EXACT, "arguments": {"a": 1}}, "exact_match takes no arguments"),
        ({**EXACT, "over": "all"}, "'prompt' or 'set'"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_load(written: Any, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Metrics.model_validate(written)
    assert message in str(refused.value)


@pytest.mark.parametrize("written", [CHRF, [CHRF, {**EXACT, "over": "set"}], {"name": "./x.py", "max": 1}])
def test_the_json_schema_takes_what_loads(written: Any) -> None:
    assert Metrics.model_validate(written)
    assert Draft202012Validator(Metrics.model_json_schema()).is_valid(written)


@pytest.mark.parametrize("written", ["chrf", True, [], {"min": 1}, {**CHRF, "name": "chrff"}, {**CHRF, "over": "all"}])
def test_the_json_schema_refuses_what_does_not_load(written: Any) -> None:
    assert not Draft202012Validator(Metrics.model_json_schema()).is_valid(written)


def test_what_is_said_of_our_own_metrics_is_what_they_are(judge: Judge) -> None:
    assert list(OWN) == list(CLASSES)
    for name, own in OWN.items():
        for key in own.highest:
            assert judge("a b", name=name, references="a b", key=key, min=0).status == "passed"


MINE = """
import datasets
import evaluate

STRING = datasets.Value("string")

class Mine(evaluate.Metric):
    def _info(self):
        features = datasets.Features({FEATURES})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, BODY
"""
LONGER = (
    'references, by=1):\n        return {"longer": by * sum(len(p) - len(r) for p, r in zip(predictions, references))}'
)
ONE_REFERENCE = '"predictions": STRING, "references": STRING'
MANY_REFERENCES = '"predictions": STRING, "references": [STRING]'


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """evaluate copies a metric's file before it imports it: not into the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        patch.setattr(evaluate.config, "HF_EVALUATE_CACHE", folder / "evaluate")
        patch.setattr(sys, "path", [*sys.path])
        yield
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        del sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path, modules: None) -> Iterator[Callable[[str, str], str]]:
    """Write a metric's file; its path."""

    def write(features: str, body: str) -> str:
        file = tmp_path / "mine.py"
        file.write_text(MINE.replace("FEATURES", features).replace("BODY", body))
        return str(file)

    yield write
    computing._opened.cache_clear()


def test_a_file_of_the_users_own_is_a_metric(judge: Judge, mine: Callable[[str, str], str]) -> None:
    file = mine(ONE_REFERENCE, LONGER)

    assert judge("abcd", name=file, references="ab", max=1).reason == "mine 2, at most 1 wanted"
    assert judge("abcd", name=file, references="ab", max=4, arguments={"by": 2}).numbers["metric"] == 4


@pytest.mark.parametrize(("bound", "score"), [("min", 3), ("max", 1)])
def test_of_several_references_the_best_counts_where_a_metric_takes_one(
    judge_set: Judge, mine: Callable[[str, str], str], bound: str, score: int
) -> None:
    verdict = judge_set([("abcd", ["abc", "a"]), ("", "")], name=mine(ONE_REFERENCE, LONGER), **{bound: 2})

    assert verdict.numbers["metric"] == score


def test_a_metric_that_takes_lists_gets_lists(judge: Judge, mine: Callable[[str, str], str]) -> None:
    file = mine(MANY_REFERENCES, 'references):\n        return {"count": len(references[0]), "other": 0}')

    assert judge("x", name=file, key="count", references=["a", "b"], min=0).numbers["metric"] == 2
    assert judge("x", name=file, key="count", references="a", min=0).numbers["metric"] == 1


def test_a_metric_may_look_at_outputs_alone(judge: Judge, mine: Callable[[str, str], str]) -> None:
    file = mine('"predictions": STRING', '**_):\n        return {"mine": [len(text) for text in predictions]}')

    assert judge("abcd", name=file, min=4).status == "passed"
    assert judge("abcd", name=file, min=4, references="unused").status == "passed"


@pytest.mark.parametrize(
    ("body", "written", "reason"),
    [
        ("references):\n        return 1 / 0", {}, "metric mine failed: ZeroDivisionError: division by zero"),
        ("references):\n        return 5", {}, "metric mine: it gives no results by name"),
        ("references):\n        return {}", {}, "metric mine: it gives no results by name"),
        (
            "references):\n        return dict(a=1, b=2)",
            {},
            "metric mine: it gives a, b; choose one of them with `key:`",
        ),
        (
            "references):\n        return dict(a=1)",
            {"key": "b"},
            "metric mine: it gives a; choose one of them with `key:`",
        ),
        ("references):\n        return dict(a='x')", {}, "metric mine: its a is not a number but 'x'"),
        ("references):\n        return dict(a=float('nan'))", {}, "metric mine gives nan, which is no score"),
        (LONGER, {"references": None}, "metric mine: it compares with references, and the suite gives none"),
        (LONGER, {"arguments": {"to": 1}}, "metric mine failed: TypeError: "),
    ],
)
def test_a_metric_that_breaks_is_named_with_what_broke(
    judge: Judge, mine: Callable[[str, str], str], body: str, written: dict[str, Any], reason: str
) -> None:
    verdict = judge("abc", **({"name": mine(ONE_REFERENCE, body), "references": "x", "min": 1} | written))

    assert verdict.status == "error"
    assert verdict.reason.startswith(reason)


def test_what_was_scored_before_a_failure_is_no_part_of_the_next_score(
    judge: Judge, mine: Callable[[str, str], str]
) -> None:
    fails_on_x = 'references):\n        assert "x" not in predictions\n        return {"count": len(predictions)}'
    written = {"name": mine(ONE_REFERENCE, fails_on_x), "references": "a", "min": 1}

    assert judge("x", **written).status == "error"
    assert judge("a", **written).numbers["metric"] == 1


def test_a_file_that_is_not_there_or_holds_no_metric_says_so(judge: Judge, tmp_path: Path, modules: None) -> None:
    (tmp_path / "empty.py").write_text("x = 1")
    absent, empty = str(tmp_path / "absent.py"), str(tmp_path / "empty.py")

    assert f"there is no file {absent}" in judge("x", name=absent, min=1).reason
    assert "define one class derived from evaluate.Metric" in judge("x", name=empty, min=1).reason


def test_a_metric_of_the_hub_is_asked_for_once_and_not_at_all_when_offline(
    judge: Judge, modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing._opened.cache_clear()
    asked = []
    really = evaluate.load

    def load(path: str, **how: Any) -> Any:
        asked.append((path, how["module_type"], evaluate.config.HF_EVALUATE_OFFLINE))
        return really(path, **how)

    monkeypatch.setattr(evaluate, "load", load)
    monkeypatch.setattr(computing.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it went to the network"))
    for _ in range(2):
        verdict = judge("x", name="hub:someone/closeness", references="x", min=1)
        assert verdict.status == "error"
        assert (
            "could not be fetched from the Hub; save its code as a file of your own, ./closeness.py" in verdict.reason
        )

    assert asked == [("someone/closeness", "metric", True)]
    assert evaluate.config.HF_EVALUATE_OFFLINE is False


@pytest.mark.slow
def test_nothing_is_written_or_printed_by_our_own_metrics(tmp_path: Path) -> None:
    code = (
        "from harness.expectations.metrics import OWN, _computing\n"
        "for name in OWN:\n"
        "    _computing().score(name, [('a', ['b'])], key='', lower_is_better=False, arguments={})\n"
    )
    places = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout + done.stderr == ""
    assert not list(tmp_path.rglob("*.arrow"))
    assert not (tmp_path / "hf" / "metrics").exists()


def test_reading_suites_with_metrics_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from harness.expectations.metrics import Metrics\n"
        "Metrics.model_validate({'name': 'chrf', 'min': 1, 'references': 'x'}).members()\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    imported = {name.split(".")[0] for name in done.stdout.split()}
    assert "pydantic" in imported
    assert not imported & {"evaluate", "sacrebleu", "datasets", "numpy", "pandas", "pyarrow", "torch", "transformers"}
