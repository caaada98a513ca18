"""Past runs as they are shown: terminal, page and frame."""

import base64
import hashlib
import re
import warnings
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness.reports.history import flake_words, headline, percent, show
from harness.reports.history_frame import history_frame
from harness.reports.history_page import DRAWN, render, strip
from harness.run_index import Part, Past, PastRun
from harness.run_outcomes import CheckName
from harness.trend import Flake, history

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "\x1b[31m\x07\u202e\ud800")
CONDITIONS = {"suite": "s1", "weights": "w1", "device": "cpu", "python": "3.11.7", "torch": "2.12.0"}
NAMES = (
    CheckName("stops", "stops[a]", False),
    CheckName("stops", "stops[b]", False),
    CheckName("knows", "knows[a]", False),
)


def made(*words, names=NAMES, suite="basics", target="tiny", notes=(), folder=Path("reports"), torch=()):
    """A run for each word: a letter for each check; from these numbers of runs on, another torch."""
    runs, parts = [], []
    for number, word in enumerate(words):
        started = datetime(2026, 1, 1, 6, tzinfo=UTC) + timedelta(days=number)
        folder_of_run = folder / f"{started:%Y%m%d}-{suite}-{number:02}"
        runs.append(
            PastRun(folder_of_run, started, 60.0 + number, number != 1, {"passed": len(word)}, "c0ffee" * 6, True)
        )
        version = sum(number >= first for first in torch)
        conditions = CONDITIONS | {"torch": f"2.{12 + version}.0"}
        speed = (30 + number, 2.0, {"stops": 1.0 + number})
        parts.append(Part(number, suite, target, names, word.encode(), conditions, *speed))
    return history(Past(tuple(runs), tuple(parts), tuple(notes)))


def printed(found, width=120, verbose=False, **changes):
    file = StringIO()
    show(found, Console(file=file, width=width, **changes), verbose=verbose)
    return file.getvalue()


TOLD = made("ppp", "pfp", "ppp", "fpp", "fpp", torch=(3,), notes=("reports/x was left out: it is damaged",))


def test_the_terminal_tells_what_fails_flakes_and_changed():
    assert printed(TOLD).splitlines() == [
        "basics on tiny  5 runs, 17.0 tokens/s in the last (15.0 to 17.0)",
        "  test   now       runs   passed  flake",
        "  stops  ✗ failed  ✓✗✓✗✗    70 %  2 of 3 pairs, 67 % [13 %, 96 %], few",
        "  knows  ✓ passed  ✓✓✓✓✓   100 %  0 of 3 pairs",
        "",
        "✗ failed  basics::stops on tiny: 1 of 2 checks, for 2 runs, first in 20260104-basics-03; "
        "passed in 20260103-basics-02",
        "    what differs between the two: torch 2.12.0 → 2.13.0",
        "",
        "~ flaked  basics::stops[b] on tiny: another outcome in 2 of 3 pairs, 67 % [13 %, 96 %], few; "
        "last in 20260103-basics-02",
        "",
        "→ changed  basics on tiny in 20260104-basics-03: torch 2.12.0 → 2.13.0",
        "    stops[a]: passed → failed",
        "",
        "note  reports/x was left out: it is damaged",
        "FAILING  1 of 2 tests on 1 target fail now, 1 check flaked, in 5 runs from 2026-01-01 to 2026-01-05",
    ]


def test_the_verdict_has_one_word():
    assert headline(made("ppp", "ppp")) == (
        "STEADY",
        "nothing fails, 0 checks flaked, in 2 runs from 2026-01-01 to 2026-01-02",
    )
    assert headline(made("ppp", "pfp", "ppp"))[0] == "FLAKY"
    assert headline(made("ppp")) == (
        "STEADY",
        "nothing fails, no two runs of the same conditions: no flake can show, in 1 run of 2026-01-01",
    )


@pytest.mark.parametrize(
    ("share", "told"), [(0, "0 %"), (0.001, "<1 %"), (0.25, "25 %"), (0.994, "99 %"), (0.999, ">99 %"), (1, "100 %")]
)
def test_a_share_is_never_rounded_to_all_or_nothing(share, told):
    assert percent(share) == told


def test_a_rate_from_few_pairs_says_so():
    assert flake_words(Flake(1, 9)).endswith(", few")
    assert not flake_words(Flake(1, 10)).endswith(", few")
    assert flake_words(Flake(0, 0)) == "no pairs"


def test_many_steady_tests_are_only_counted():
    names = tuple(CheckName(f"t{number}", f"t{number}", False) for number in range(60))
    found = made("p" * 60, "f" + "p" * 59, names=names)
    text = printed(found)
    assert "  t0    ✗ failed" in text
    assert "t1 " not in text
    assert "59 tests more failed in no run: --verbose" in text
    assert "  t59   ✓ passed" in printed(found, verbose=True)


def test_the_last_runs_are_drawn_as_wide_as_the_terminal_is():
    found = made(*["ppp"] * 30 + ["fpp"])
    for width in (60, 80, 200):
        text = printed(found, width=width)
        row = next(line for line in text.splitlines() if line.startswith("  knows"))
        assert len(row) <= width
        drawn = row.count("✓") - 1  # the outcome itself is one, too
        assert f"last {drawn} " in text
    assert drawn == 31


def test_a_console_that_cannot_say_symbols_gets_letters():
    class Plain(StringIO):
        encoding = "ascii"

    file = Plain()
    show(TOLD, Console(file=file, width=100))
    assert ".F.FF" in file.getvalue()
    file.getvalue().encode("ascii")


@pytest.mark.parametrize("evil", EVIL)
def test_names_act_nowhere(evil, tmp_path):
    names = (CheckName(evil, f"{evil}[a]", False),)
    found = made("p", "f", "p", "f", names=names, suite=evil, target=evil, notes=(evil,), torch=(3,))
    text = printed(found)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e\ud800]", text)
    page = render(found, tmp_path)
    page.encode()
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e\ud800]", page)
    assert "49" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).replace("249", "")


class Page(HTMLParser):
    """The elements of a page, which must be closed in order, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    text = render(TOLD, tmp_path)
    page = Page(text)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on") or name == "src"]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_says_all_that_the_terminal_says(tmp_path):
    text = Page(render(TOLD, tmp_path)).text
    for told in (
        "FAILING – history",
        headline(TOLD)[1],
        "1 of 2 checks, for 2 runs, first in 20260104-basics-03; passed in 20260103-basics-02",
        "torch 2.12.0 → 2.13.0",
        "2 of 3 pairs, 67 % [13 %, 96 %], few",
        "stops[a]: passed → failed",
        "reports/x was left out: it is damaged",
        "17 tokens/s in the last run, 15 to 17 in 5 runs",
        "duration of a run: 64 s in the last run, 60 to 64 in 5 runs",
        "stopped before the end",
    ):
        assert told in text


def test_every_section_has_a_heading_and_every_table_headers(tmp_path):
    page = Page(render(TOLD, tmp_path))
    sections = page.all("section")
    assert [one["id"] for one in sections] == [
        "failing",
        "flaky",
        "changes",
        "tests",
        "targets",
        "runs",
        "notes",
        "words",
    ]
    headings = {one.get("id") for one in page.all("h2")}
    assert {one["aria-labelledby"] for one in sections} == headings
    assert {link["href"] for link in page.all("a")} == {f"#{one['id']}" for one in sections}
    assert {head.get("scope") for head in page.all("th")} == {"col", "row"}
    assert len(page.all("table")) == len([one for one in page.all("div") if one.get("tabindex") == "0"]) == 6


def test_drawings_have_words_and_shapes(tmp_path):
    page = Page(render(TOLD, tmp_path))
    assert all(one.get("role") == "img" for one in page.all("svg"))
    assert len(page.all("title")) == 1 + len(page.all("svg"))
    test = TOLD.tests[0]
    drawn = strip(test)
    # Five runs of 5 units each: whole, half, whole, half, half; something failed in the second and the last two.
    assert (drawn.width, drawn.height) == (25, 24)
    assert drawn.full == "M2 24v-18M7 24v-9M12 24v-18M17 24v-9M22 24v-9"
    assert drawn.fail == "M5 0h4l-2 4zM15 0h4l-2 4zM20 0h4l-2 4z"
    assert drawn.edge == "M14.5 0v24"
    assert drawn.words == (
        "5 runs, oldest first: failed in 3; passed from 50 % to 100 %, in the last 50 %; conditions changed 1 times"
    )


def test_a_long_history_is_drawn_to_its_last_runs():
    (test, *_) = made(*["ppp"] * 100).tests
    assert strip(test).width == 5 * DRAWN
    assert strip(test).words.startswith("60 runs")


def test_runs_are_linked_as_seen_from_the_page(tmp_path):
    found = made("ppp", "ppp", folder=tmp_path / "my reports", suite="a&b")
    found.runs[1].folder.mkdir(parents=True)
    (found.runs[1].folder / "report.html").write_text("")
    links = [link["href"] for link in Page(render(found, tmp_path / "pages")).all("a") if link["href"][0] != "#"]
    assert links == ["../my%20reports/20260102-a%26b-01/report.html"]


def test_a_page_of_many_tests_is_made_quickly_and_stays_small(tmp_path):
    names = tuple(CheckName(f"t{number}", f"t{number}", False) for number in range(1000))
    page = render(made(*["p" * 1000] * 50, names=names), tmp_path)
    assert len(page) < 2_500_000
    assert page.count("<svg") > 1000


def test_a_frame_has_a_row_for_each_test():
    frame = history_frame(TOLD).set_index("test")
    stops = frame.loc["stops"]
    assert list(frame.index) == ["stops", "knows"]
    assert (stops.suite, stops.target, stops.outcome, stops.runs, stops.last_run) == (
        *("basics", "tiny", "failed", 5, "20260105-basics-04"),
    )
    assert (stops.passed, stops.judged, stops.pass_rate) == (7, 10, 0.7)
    assert (stops.failing_runs, stops.failing_since) == (2, pd.Timestamp("2026-01-04 06:00", tz="UTC"))
    assert (stops.pairs, stops.flakes, stops.flake_rate) == (3, 2, 2 / 3)
    assert stops.flake_low < 2 / 3 < stops.flake_high
    assert stops.seconds == 3.0  # the median of 1 to 5
    assert frame.failing_since.isna().tolist() == [False, True]


def test_a_frame_by_check():
    frame = history_frame(TOLD, "check").set_index("check")
    assert frame.flakes.to_dict() == {"stops[a]": 0, "stops[b]": 2, "knows[a]": 0}
    assert frame.pairs.to_dict() == {"stops[a]": 3, "stops[b]": 3, "knows[a]": 3}
    assert frame.last_flake["stops[b]"] == pd.Timestamp("2026-01-03 06:00", tz="UTC")


def test_a_frame_by_run():
    frame = history_frame(TOLD, "run")
    assert len(frame) == 10
    assert frame.started.is_monotonic_increasing
    stops = frame[frame.test == "stops"]
    assert stops.outcome.tolist() == ["passed", "failed", "passed", "failed", "failed"]
    assert stops.pass_rate.tolist() == [1, 0.5, 1, 0.5, 0.5]
    assert stops.compared.tolist() == [0, 2, 2, 0, 2]
    assert stops.flaked.tolist() == [0, 1, 1, 0, 0]
    assert stops.changed.tolist() == [0, 0, 0, 1, 0]
    assert stops.seconds.tolist() == [1, 2, 3, 4, 5]
    assert stops.tokens_per_second.tolist() == [15, 15.5, 16, 16.5, 17]
    assert np.isnan(frame[frame.test == "knows"].seconds).all()


@pytest.mark.parametrize("by", ["test", "check", "run"])
def test_a_frame_of_nothing_has_its_columns(by):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = history_frame(history(Past((), (), ())), by)
    assert nothing.empty
    assert list(nothing.columns) == list(history_frame(TOLD, by).columns)


def test_other_rows_are_refused():
    with pytest.raises(ValueError, match="'test', 'check' or 'run', not 'day'"):
        history_frame(TOLD, "day")
