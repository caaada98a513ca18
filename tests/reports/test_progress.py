"""How far a run is and how long it will take, on a clock that is set by hand; and on which stream it is told how."""

import io
import re
import sys
import time

import pytest
from rich.cells import cell_len
from rich.console import Console

from harness.inputs import Model
from harness.load import load
from harness.plan import plan
from harness.record import Target
from harness.reports.progress import Bar, Heartbeat, Pace, watch
from harness.runner import Runner


def target(name):
    return Target(name, "m", Model(backend="scripted", completions=[{"text": "hi"}]))


A, B, C = map(target, ("a", "b", "c"))


class Run:
    """Tells a Pace what happens, and when."""

    def __init__(self, **announced):
        self.now = 0.0
        self.pace = Pace(lambda: self.now)
        for name, requests in announced.items():
            self.pace.announced(target(name), requests)

    def at(self, second, one, done, total):
        self.now = float(second)
        self.pace.batch(one, done, total)

    def line_at(self, second):
        self.now = float(second)
        return self.pace.line()


class TestPace:
    def test_what_is_going_on_is_named_with_its_place_and_its_requests(self):
        run = Run(a=10, b=10)
        assert run.pace.line() == "starting"
        run.at(0, A, 0, 10)
        run.pace.says("loading a")
        assert run.pace.line() == "loading a (target 1 of 2)"
        run.at(1, A, 1500, 2000)
        assert run.pace.line() == "a (target 1 of 2): 1,500/2,000 requests"
        run.at(2, B, 0, 10)
        assert run.pace.line() == "b (target 2 of 2)"

    def test_of_a_single_target_the_place_goes_without_saying(self):
        run = Run(a=10)
        run.at(0, A, 0, 10)
        run.at(1, A, 3, 10)
        assert run.pace.line() == "a: 3/10 requests"

    def test_the_time_left_is_that_of_this_target_and_of_those_to_come(self):
        run = Run(a=10, b=10, c=20)
        run.at(0, A, 0, 10)
        run.at(20, A, 2, 10)
        assert run.pace.left is None, "the first batch came with the loading"
        run.at(24, A, 4, 10)
        # 2 s a request: 12 s are left of a, which takes 36 s for 10 requests in all; b and c have 30 of them.
        assert run.pace.left == pytest.approx(12 + 3.6 * 30)
        assert run.line_at(24) == "a (target 1 of 3): 4/10 requests, about 2 min left"

    def test_it_passes_while_a_batch_is_generated(self):
        run = Run(a=10)
        run.at(0, A, 0, 10)
        run.at(20, A, 2, 10)
        run.at(40, A, 4, 10)
        for second, left in ((40, 60), (50, 50), (100, 0), (200, 0)):
            run.now = second
            assert run.pace.left == left

    def test_a_target_that_has_only_begun_is_taken_to_be_like_those_before(self):
        run = Run(a=10, b=10, c=20)
        for second, done in ((0, 0), (20, 2), (36, 10)):
            run.at(second, A, done, 10)
        run.at(36, B, 0, 10)
        run.pace.says("loading b")
        assert run.pace.left == pytest.approx(3.6 * 30)
        run.at(46, B, 5, 10)
        run.at(51, B, 10, 10)
        # Both took 51 s for 20 requests.
        assert run.pace.left == pytest.approx(51)

    def test_a_target_that_could_not_be_loaded_says_nothing_of_the_others(self):
        run = Run(a=1000, b=10, c=10)
        run.at(0, A, 0, 1000)
        run.at(1, B, 0, 10)
        for second, done in ((11, 5), (16, 10)):
            run.at(second, B, done, 10)
        assert run.pace.left == pytest.approx(15)
        assert "(target 2 of 3)" in run.pace.line()

    def test_what_is_asked_on_the_way_is_expected_of_later_targets_too(self):
        run = Run(a=10, b=10)
        run.at(0, A, 0, 10)
        run.at(10, A, 10, 30)
        run.at(20, A, 20, 30)
        # 10 s are left of a; 30 s in all for what was announced as 10 requests.
        assert run.pace.left == pytest.approx(10 + 30)

    def test_where_nothing_was_announced_a_target_takes_as_long_as_those_before(self):
        run = Run(a=0, b=0, c=0)
        run.at(0, A, 0, 0)
        run.at(10, A, 5, 10)
        run.at(20, A, 10, 10)
        assert run.pace.left is None
        run.at(50, B, 0, 0)
        assert run.pace.left == pytest.approx(50), "of c; what b will be asked is not known"

    def test_the_same_again_and_again_has_no_end_that_could_be_told(self):
        run = Run(a=10)
        for second, done in ((0, 0), (20, 2), (40, 4)):
            run.at(second, A, done, 10)
        assert run.pace.left == 60
        run.pace.announced(A, 10)
        run.pace.says("planting no-mask")
        for second, done in ((50, 0), (60, 2), (70, 4)):
            run.at(second, A, done, 10)
        assert run.line_at(70) == "a: 4/10 requests"

    def test_a_target_that_is_asked_beside_another_does_not_turn_the_run_back(self):
        run = Run(a=10, b=10, c=10)
        run.at(0, A, 0, 10)
        run.at(10, A, 10, 10)
        run.at(10, B, 0, 10)
        run.at(20, B, 5, 10)
        left = run.pace.left
        run.at(20, A, 11, 11)
        assert run.pace.line().startswith("a (target 2 of 3): 11/11 requests")
        assert run.pace.left == left

    def test_the_share_that_is_done(self):
        run = Run(a=10, b=30)
        assert Pace().share is None
        run.at(0, A, 5, 10)
        assert run.pace.share == 5 / 40
        run.at(0, B, 0, 30)
        assert run.pace.share == 10 / 40
        run.at(0, B, 30, 30)
        assert run.pace.share == 1

    @pytest.mark.parametrize(
        ("seconds", "told"),
        [(4, ""), (5, "10 s"), (34, "30 s"), (54, "50 s"), (56, "1 min"), (200, "3 min"), (3570, "1 h 0 min"),
         (8000, "2 h 13 min")],
    )  # fmt: skip
    def test_durations_are_round(self, seconds, told):
        run = Run(a=3)
        run.at(0, A, 1, 3)
        run.at(seconds, A, 2, 3)
        assert run.pace.line().partition("about ")[2] == (f"{told} left" if told else "")

    @pytest.mark.parametrize("room", range(30, 90))
    def test_a_line_fits_the_room_and_gives_up_words_before_numbers(self, room):
        run = Run(a=10, b=10)
        run.at(0, target("東京-" * 8), 2, 10)
        run.at(100, target("東京-" * 8), 4, 10)
        line = run.pace.line(room)
        assert cell_len(line) <= room
        assert "1 of 3" in line
        assert "4/10" in line

    def test_what_is_told_cannot_drive_the_terminal(self):
        pace = Pace()
        pace.says("loading \x1b[2Jmodel\nof mine")
        assert pace.line() == "loading \\x1b[2Jmodel\\nof mine"


class Diary:
    """An observer that writes down what it is told."""

    def __init__(self):
        self.told = []

    def says(self, message):
        self.told.append(message)

    def announced(self, target, requests):
        self.told.append(f"{target.name}: {requests} announced")

    def batch(self, target, done, total):
        self.told.append(f"{target.name}: {done}/{total}")


def test_a_run_tells_how_much_it_will_ask_before_anything_is_loaded(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text(
        "suite: demo\nmodels: {fake: {backend: scripted, completions: [{text: hi}]}}\nquantization: [none, nf4]\n"
        "prompts: {a: a, b: b}\ntests:\n"
        "  - {name: says, prompts: [a, b], expect: {contains: hi, not_empty: true}}\n"
        "  - {name: again, prompts: [a], expect: {deterministic: {runs: 3}}}\n"
    )
    diary = Diary()
    list(Runner(plan([load(file)]).checks, diary).run())
    # Three of a, for it is repeated, and one of b; batches are of equal length, repeats of their own.
    assert diary.told[:3] == ["fake-none: 4 announced", "fake-nf4: 4 announced", "fake-none: 0/4"]
    second = diary.told.index("fake-nf4: 0/4")
    assert {line.split(":")[0] for line in diary.told[2:second]} == {"fake-none"}
    assert [diary.told[second - 1], diary.told[-1]] == ["fake-none: 4/4", "fake-nf4: 4/4"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestHeartbeat:
    def test_it_is_silent_between_beats(self):
        stream = io.StringIO()
        heartbeat = Heartbeat(stream)
        heartbeat.says("loading a")
        heartbeat.announced(A, 4)
        heartbeat.batch(A, 2, 4)
        assert stream.getvalue() == ""
        heartbeat.beat()
        assert stream.getvalue() == "a: 2/4 requests\n"

    def test_it_beats_by_itself_while_something_takes_long_and_stops_with_the_run(self):
        stream = io.StringIO()
        with Heartbeat(stream, every=0.02).beating() as heartbeat:
            heartbeat.says("loading a")
            deadline = time.monotonic() + 20
            while stream.getvalue().count("loading a\n") < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        told = stream.getvalue()
        assert set(told.splitlines()[-2:]) == {"loading a"}
        time.sleep(0.1)
        assert stream.getvalue() == told

    def test_a_stream_that_was_closed_ends_it_quietly(self):
        stream = io.StringIO()
        with Heartbeat(stream, every=0.01).beating():
            stream.close()
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("stream", "ci", "term", "observer"),
    [
        (Terminal, "", "xterm", Bar),
        (Terminal, "false", "xterm", Bar),
        (Terminal, "true", "xterm", Heartbeat),
        (Terminal, "", "dumb", Heartbeat),
        (io.StringIO, "", "xterm", Heartbeat),
    ],
)
def test_a_bar_is_for_a_person_at_a_terminal(monkeypatch, stream, ci, term, observer):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("TERM", term)
    with watch(stream()) as chosen:
        assert type(chosen) is observer


@pytest.mark.parametrize("columns", [50, 100])
def test_a_bar_shows_what_is_going_on_in_the_width_that_there_is(monkeypatch, columns):
    monkeypatch.setenv("CI", "")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with watch(stream) as observer:
        observer.announced(A, 8)
        observer.announced(target("b" * 30), 4)
        observer.batch(A, 0, 8)
        observer.says("loading [fake-none]")
        observer.batch(target("b" * 30), 1, 4)
        observer.progress.refresh()
        print("a library says something", file=sys.stderr)
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue())
    assert "loading [fake-none] (target 1 of 2)" in drawn
    assert "2 of 2): 1/4" in drawn
    assert "a library says something" in drawn
    assert max(cell_len(line) for line in re.split(r"[\r\n]+", drawn)) <= columns


def test_a_bar_on_a_terminal_that_knows_only_ascii():
    raw = io.BytesIO()
    bar = Bar(Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), force_terminal=True, width=80))
    with bar.progress:
        bar.says("loading Zürich")
        bar.batch(A, 1, 4)
        bar.progress.refresh()
    assert b"loading Z\\xfcrich" in raw.getvalue()
