from itertools import combinations

import pytest

from harness.reports.charts import RADIUS, Box, Point, scatter


def boxes(chart):
    return [mark.box for mark in chart.marks]


def test_more_memory_is_further_right_and_more_speed_is_higher():
    chart = scatter([Point("a", 100, 30, True), Point("b", 200, 10, False), Point("c", 150, 20, True)])
    places = {mark.point.label: (mark.x, mark.y) for mark in chart.marks}
    assert places["a"][0] < places["c"][0] < places["b"][0]
    assert places["a"][1] < places["c"][1] < places["b"][1]
    # c is half way in both
    assert places["c"] == pytest.approx(((places["a"][0] + places["b"][0]) / 2, (places["a"][1] + places["b"][1]) / 2))
    assert all(chart.left < x < chart.right and chart.top < y < chart.bottom for x, y in places.values())
    # 100 … 200 with an eighth more on each side, in five steps or fewer: by 50
    assert [tick.text for tick in chart.x_ticks] == ["100", "150", "200"]
    ticks = {tick.text: tick.at for tick in chart.x_ticks}
    assert ticks["100"] == pytest.approx(places["a"][0])


@pytest.mark.parametrize("count", [1, 5, 60])
def test_words_of_equal_points_stand_apart(count):
    points = [Point(f"smollm2-level-{number}, KL 0.123", 500, 30, True) for number in range(count)]
    chart = scatter([*points, Point("elsewhere", 900, 10, False), Point("東京" * 10, 900, 10.1, False)])
    assert not any(one.meets(other) for one, other in combinations(boxes(chart), 2))
    dots = [Box(m.x - RADIUS, m.y - RADIUS, m.x + RADIUS, m.y + RADIUS) for m in chart.marks]
    assert not any(words.meets(dot) for words in boxes(chart) for dot in dots)
    assert all(box.left >= 0 and box.right <= chart.width for box in boxes(chart))
    assert all(box.top >= 0 and box.bottom <= chart.height for box in boxes(chart))
    assert sum(mark.far for mark in chart.marks) >= count - 1  # joined by lines


def test_one_point_and_points_at_zero_are_a_chart_too():
    assert len(scatter([Point("a", 0, 0, True)]).marks) == 1
    assert len(scatter([Point("x" * 200, 5, 5, True)]).marks) == 1
