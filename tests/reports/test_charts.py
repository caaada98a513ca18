import math
import re
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from harness.reports import charts as page_charts
from harness.reports.axes import axis, written
from harness.reports.charts import RADIUS, Box, Limit, Point, scatter, told_apart
from harness.reports.profile_charts import AT_ONCE, BARS, Series, Spread, lanes, lines


def points_of(*points, **changes):
    return scatter(points, "MB", "tokens/s", "in words", **changes)


class TestAxis:
    def test_numbers_that_are_near_stand_at_equal_distances(self):
        made = axis([10, 20], 0, 100)
        # 12 % of the range beyond each end: 8.8 … 21.2
        assert (made.low, made.high, made.log) == (pytest.approx(8.8), pytest.approx(21.2), False)
        assert made.place(15) == 50
        assert [tick.text for tick in made.ticks] == ["10", "12.5", "15", "17.5", "20"][::2]

    def test_it_may_run_upwards(self):
        made = axis([0, 10], 200, 0, from_zero=True)
        assert [made.place(value) for value in (0, 5, 10)] == [200, 100, 0]

    def test_numbers_that_differ_by_much_stand_by_their_powers(self):
        made = axis([0.001, 1], 0, 100)
        assert [made.place(value) for value in (0.001, 0.01, 0.1, 1)] == pytest.approx([0, 33.3, 66.7, 100], abs=0.1)
        assert [tick.text for tick in made.ticks] == ["0.001", "0.01", "0.1", "1"]
        assert not axis([1, 29], 0, 100).log
        assert axis([1, 30], 0, 100).log
        assert not axis([-1, 1000], 0, 100).log

    def test_zero_has_a_place_beside_the_powers(self):
        made = axis([0, 0.001, 1], 0, 100)
        assert made.place(0) == made.place(1e-5) == 0
        assert made.place(0.001) == 9
        assert made.place(1) == 100
        assert made.ticks[0].text == "0"
        # and so has what is a millionth of the largest, or less
        assert axis([1e-12, 0.001, 1], 0, 100).ticks[:2] == made.ticks[:2]

    @pytest.mark.parametrize("values", [[10, 20], [0.001, 1], [0, 0.001, 1], [5], [0]])
    def test_what_stands_at_a_place(self, values):
        made = axis(values, 20, 220)
        for value in values:
            assert made.value(made.place(value)) == pytest.approx(value, rel=0.02, abs=0.0011)

    @pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf]])
    def test_without_a_finite_number_it_is_an_axis_too(self, values):
        assert axis(values, 0, 100).ticks

    def test_what_is_not_finite_has_no_say(self):
        assert axis([1, 2, math.nan, math.inf], 0, 100) == axis([1, 2], 0, 100)

    def test_numbers_are_written_without_digits_that_say_nothing(self):
        numbers = (0.0, 0.1 * 3, 1000, 2_000_000, 1e-6, 250.5)
        assert [written(number) for number in numbers] == ["0", "0.3", "1,000", "2,000,000", "1e-6", "250.5"]


class TestScatter:
    def test_more_memory_is_further_right_and_more_speed_is_higher(self):
        chart = points_of(Point("a", 100, 30, True), Point("b", 200, 10, False), Point("c", 150, 20, True))
        places = {mark.point.label: (mark.x, mark.y) for mark in chart.marks}
        assert places["a"][0] < places["c"][0] < places["b"][0]
        assert places["a"][1] < places["c"][1] < places["b"][1]
        # c is half way in both
        middle = ((places["a"][0] + places["b"][0]) / 2, (places["a"][1] + places["b"][1]) / 2)
        assert places["c"] == pytest.approx(middle, abs=0.1)
        frame = chart.frame
        assert all(frame.left < x < frame.right and frame.top < y < frame.bottom for x, y in places.values())
        # 100 … 200 with an eighth more on each side, in so many steps or fewer: by 50
        assert [tick.text for tick in frame.x_ticks] == ["100", "150", "200"]
        assert frame.x_ticks[0].at == places["a"][0]

    def test_what_is_better_stands_above(self):
        chart = points_of(Point("exact", 1, 0, True), Point("far", 1, 0.5, False), less_is_better=True)
        exact, far = sorted(chart.marks, key=lambda mark: mark.y)
        assert (exact.point.label, far.point.label) == ("exact", "far")

    def test_a_limit_is_a_line_at_its_number(self):
        limits = [Limit("max_memory_mb 200", 200, along_x=True), Limit("at least 20", 20)]
        chart = points_of(Point("a", 200, 20, True), Point("b", 300, 30, True), limits=limits)
        at = next(mark for mark in chart.marks if mark.point.label == "a")
        assert [border.at for border in chart.borders] == [at.x, at.y]
        assert not any(border.words.meets(mark.box) for border in chart.borders for mark in chart.marks)

    def test_an_interval_is_a_line_through_the_point(self):
        chart = points_of(Point("a", 1, 20, True, low=10, high=30), Point("b", 2, 20, True, low=10, high=math.inf))
        a, b = sorted(chart.marks, key=lambda mark: mark.x)
        assert a.low - a.y == pytest.approx(a.y - a.high, abs=0.1)
        assert a.low > a.y
        assert b.high is None

    @pytest.mark.parametrize("count", [1, 5, 60])
    def test_words_of_equal_points_stand_apart(self, count):
        points = [Point(f"smollm2-level-{number} · Pareto", 500, 30, True) for number in range(count)]
        chart = points_of(*points, Point("elsewhere", 900, 10, False), Point("東京" * 10, 900, 10.1, False))
        boxes = [mark.box for mark in chart.marks]
        assert not any(one.meets(other) for one, other in combinations(boxes, 2))
        dots = [Box(m.x - RADIUS, m.y - RADIUS, m.x + RADIUS, m.y + RADIUS) for m in chart.marks]
        assert not any(words.meets(dot) for words in boxes for dot in dots)
        assert all(box.left >= 0 and box.right <= chart.frame.width for box in boxes)
        assert all(box.top >= 0 and box.bottom <= chart.frame.height for box in boxes)
        assert sum(mark.far for mark in chart.marks) >= count - 1  # joined by lines

    def test_one_point_and_points_at_zero_are_a_chart_too(self):
        assert len(points_of(Point("a", 0, 0, True)).marks) == 1
        assert len(points_of(Point("x" * 200, 5, 5, True)).marks) == 1


def numbers_of(path):
    return [float(number) for number in re.findall(r"-?[\d.]+", path)]


class TestLines:
    def test_a_number_that_is_not_finite_is_a_gap(self):
        values = [(0, 1.0), (1, math.nan), (2, 2.0), (3, 3.0), (4, math.inf), (5, 1.0)]
        (chart,) = lines([Series("a", values)], "token", "KL", ["in words"])
        (curve,) = chart.curves
        # a dot, a line of two places, a dot
        assert re.sub(r"[\d. ]+", "", curve.path) == "MhMhLMh"
        assert chart.text == "KL over token. in words"

    def test_a_share_steps_from_one_to_the_next(self):
        (chart,) = lines([Series("a", [(0, 1.0), (10, 0.5)])], "token", "agree", [""], share=True)
        assert [tick.text for tick in chart.frame.y_ticks] == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
        start_x, start_y, _, end_x, end_y = numbers_of(chart.curves[0].path)
        assert (start_x, end_x) == (chart.frame.left, chart.frame.right)
        zero, whole = chart.frame.y_ticks[0].at, chart.frame.y_ticks[-1].at
        assert (start_y, end_y) == (whole, (zero + whole) / 2)
        assert " H " in chart.curves[0].path

    @pytest.mark.parametrize("count", [1, AT_ONCE, 7, 20])
    def test_lines_are_named_at_their_ends_and_no_more_than_can_be_told_apart(self, count):
        series = [Series(f"level-{number:02}", [(0, 0.5), (1, 0.5)]) for number in range(count)]
        charts = lines(series, "token", "KL", [one.name for one in series])
        assert len(charts) == math.ceil(count / AT_ONCE)
        assert [curve.label for chart in charts for curve in chart.curves] == [one.name for one in series]
        sizes = [len(chart.curves) for chart in charts]
        assert max(sizes) - min(sizes) <= 3
        for chart in charts:
            assert chart.frame == charts[0].frame  # the same axes
            assert len({curve.look for curve in chart.curves}) == len(chart.curves)
            heights = sorted(curve.words_y for curve in chart.curves)
            assert all(after - before >= 16 for before, after in pairwise(heights))
            assert heights[0] > 0
            assert heights[-1] < chart.frame.height
            assert all(curve.label in chart.text for curve in chart.curves)

    def test_there_is_no_half_token(self):
        (chart,) = lines([Series("a", [(0, 0.5), (1, 0.5)])], "token", "KL", [""])
        assert [tick.text for tick in chart.frame.x_ticks] == ["0", "1"]
        assert [tick.text for tick in lanes([spread("a", [0, 1])], "tokens", "").frame.x_ticks] == ["0", "1"]
        assert len(lanes([spread("a", [0.1, 1])], "ms", "").frame.x_ticks) > 2

    def test_no_lines_are_no_chart(self):
        assert lines([], "token", "KL", []) == []

    def test_a_line_of_nothing_finite_is_only_a_name(self):
        (chart,) = lines([Series("a", [(0, math.nan)])], "token", "KL", [""])
        assert (chart.curves[0].path, chart.curves[0].leader) == ("", "")


def spread(name, values):
    return Spread(name, np.sort(np.asarray(values, np.float64)))


class TestLanes:
    def test_bars_are_as_tall_as_there_are_values(self):
        chart = lanes([spread("a", [1, 1, 2, 10])], "new tokens", "")
        bars = [numbers_of(bar) for bar in chart.lanes[0].bars.split(" M ")]
        # x, foot, -height, width, foot
        assert [-bar[2] for bar in bars] == [20, 10, 10]
        ticks = {tick.text: tick.at for tick in chart.frame.x_ticks}
        assert bars[1][0] < ticks["2"] < bars[1][0] + bars[1][3]
        assert bars[2][0] < ticks["10"] < bars[2][0] + bars[2][3] + 0.1

    def test_whole_numbers_share_bars_evenly(self):
        chart = lanes([spread("a", range(200))], "new tokens", "")
        heights = [-numbers_of(bar)[2] for bar in chart.lanes[0].bars.split(" M ")]
        assert len(heights) == BARS
        assert set(heights) == {20}

    def test_quantiles_by_hand(self):
        made = spread("a", [0, 1, 2, 3, 4])
        assert [made.quantile(level) for level in (0, 0.05, 0.25, 0.5, 1)] == pytest.approx([0, 0.2, 1, 2, 4])
        (lane,) = lanes([made], "x", "").lanes
        assert lane.median == pytest.approx(sum(lane.half) / 2) == pytest.approx(sum(lane.ends) / 2, abs=0.1)
        assert lane.ends[0] < lane.most[0] < lane.half[0] < lane.median < lane.half[1] < lane.most[1] < lane.ends[1]
        assert lane.said == "median 2"

    def test_zeros_stand_in_the_first_bar_of_powers(self):
        chart = lanes([spread("a", [0, 0, 0, 0.001, 1])], "KL", "")
        bars = [numbers_of(bar) for bar in chart.lanes[0].bars.split(" M ")]
        assert bars[0][0] == chart.frame.left
        assert len(bars) == 3
        assert -bars[0][2] == 20

    @pytest.mark.parametrize("values", [[0.0], [5.5] * 7, [1e-300, 1.0], [1e12, 1e12]])
    def test_any_values_are_a_lane(self, values):
        chart = lanes([spread("a", values), spread("b", [2])], "x", "")
        assert [lane.label for lane in chart.lanes] == ["a", "b"]
        assert all(0 <= x <= chart.frame.width for lane in chart.lanes for x in (*lane.ends, *lane.half, lane.median))

    def test_all_rows_are_on_the_same_axis(self):
        one, other = lanes([spread("a", [1, 2, 9]), spread("b", [2, 2, 2])], "x", "").lanes
        assert other.median == one.median
        assert other.y > one.y


def test_long_names_lose_what_they_share():
    names = ["smollm2-135m-instruct-int8", "smollm2-135m-instruct-nf4"]
    assert list(told_apart(names).values()) == ["int8", "nf4"]
    assert list(told_apart(["tiny-int8", "tiny-nf4"]).values()) == ["tiny-int8", "tiny-nf4"]  # short enough
    assert list(told_apart(["quite-a-long-prompt-1", "quite-a-long-prompt-2"]).values()) == ["prompt-1", "prompt-2"]
    same_start = ["a-very-long-model-name", "a-very-long-model-name-int8"]
    assert list(told_apart(same_start).values()) == ["name", "name-int8"]
    assert told_apart(["x" * 40]) == {"x" * 40: f"{'x' * 12}…{'x' * 13}"}
    assert told_apart([]) == {}


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_all_that_is_drawn_is_seen_in_light_and_dark():
    style = (Path(page_charts.__file__).parent / "charts.css").read_text("utf-8")
    drawn = re.findall(r"(--\w+|stroke): light-dark\(#(\w{6}), #(\w{6})\)", style)
    assert len(drawn) == 4 + AT_ONCE
    for name, light, dark in drawn:
        if name != "--rule":  # lines of the grid only help
            assert contrast(light, "ffffff") >= 3, (name, light)
            assert contrast(dark, "14171b") >= 3, (name, dark)
    looks = re.findall(r"\.(look\d) \{ stroke: [^;]*;( stroke-dasharray: ([\d ]+);)?", style)
    assert len({dashes for _, _, dashes in looks}) == AT_ONCE  # told apart without any colour
