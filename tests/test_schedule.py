"""Which requests share a batch."""

from __future__ import annotations

from typing import Any

import pytest

from harness.inputs import GREEDY, Generation
from harness.record import Batch, Request, Text
from harness.schedule import PADDING_BUDGET, batches, unite

SAMPLED = Generation(do_sample=True, max_new_tokens=5)
UNSAID = Generation(max_new_tokens=5)


def request(words: int, name: str = "w", **fields: Any) -> Request:
    return Request(Text(text=f"{name} " * words), **({"generation": GREEDY} | fields))


def length(request: Request) -> int:
    return len(request.prompt.last.split())


def cut(requests: list[Request], *, exact: bool = True, rows: int | None = None) -> list[tuple[Request, ...]]:
    return batches(requests, length, exact=exact, rows=rows)


def test_every_request_is_in_exactly_one_batch() -> None:
    requests = [request(1 + n * 7 % 40, f"w{n}") for n in range(100)]

    together = [member for batch in cut(requests) for member in batch]

    assert sorted(together, key=str) == sorted(requests, key=str)


def test_padding_stays_within_the_budget() -> None:
    requests = [request(1 + n * n % 97, f"w{n}") for n in range(100)]

    for batch in cut(requests):
        padded = max(map(length, batch)) * len(batch)
        assert padded <= PADDING_BUDGET * sum(map(length, batch))
        assert len(batch) <= 16


def test_equal_lengths_fill_the_batch() -> None:
    assert [len(batch) for batch in cut([request(5, f"w{n}") for n in range(40)])] == [16, 16, 8]
    assert [len(batch) for batch in cut([request(5, f"w{n}") for n in range(5)], rows=2)] == [2, 2, 1]


def test_below_float32_a_row_is_alone_unless_the_suite_says() -> None:
    requests = [request(5, f"w{n}") for n in range(5)]

    assert [len(batch) for batch in cut(requests, exact=False)] == [1] * 5
    assert cut(requests, exact=False, rows=2) == [tuple(requests[:2]), tuple(requests[2:4]), (requests[4],)]


def test_adding_a_test_leaves_the_other_batches_as_they_are_below_float32() -> None:
    requests = [request(9 - n, f"w{n}") for n in range(4)]
    before = cut(requests, exact=False, rows=2)

    assert cut([*requests, request(30)], exact=False, rows=2)[:2] == before


def test_sampled_rows_are_alone_and_so_are_those_that_might_be() -> None:
    requests = [request(5, f"w{n}", generation=generation) for generation in (SAMPLED, UNSAID) for n in range(3)]

    assert [len(batch) for batch in cut(requests)] == [1] * 6


def test_different_generation_configs_do_not_share_a_batch() -> None:
    other = Generation(do_sample=False, max_new_tokens=5)

    assert len(cut([request(5), request(5, generation=other)])) == 2


def test_repeats_are_generated_apart() -> None:
    assert len(cut([request(5), request(5, repeat=1), request(5, fresh_process=True)])) == 3


def test_rows_of_one_fixed_batch_come_together() -> None:
    one, two = request(5, "a"), request(9, "b")
    layout = Batch((one.prompt, two.prompt))
    members = [one.replace(layout=layout), two.replace(layout=layout), one.replace(layout=Batch(layout.rows, "right"))]

    assert cut(members) == [tuple(members[:2]), (members[2],)]


def test_one_that_runs_alone_answers_one_that_may_be_batched() -> None:
    anyhow, alone, other = request(5), request(5, layout="alone"), request(6)

    assert unite([anyhow, alone, other]) == {anyhow: alone, alone: alone, other: other}


def test_repeats_are_never_united() -> None:
    first, second = request(5, layout="alone"), request(5, layout="alone", repeat=1)

    assert unite([first, second]) == {first: first, second: second}


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "score"},
        {"kind": "render"},
        {"kind": "processed"},
        {"kind": "bare_generate"},
        {"resume_after": 2},
        {"layout": "alone"},
    ],
    ids=str,
)
def test_what_is_no_plain_generation_is_answered_one_by_one(fields: dict[str, Any]) -> None:
    requests = [request(5, f"w{n}", **fields) for n in range(3)]

    assert cut(requests, rows=4) == cut(requests, rows=4, exact=False) == [(one,) for one in requests]


@pytest.mark.parametrize(
    "fields",
    [{"attention": "eager"}, {"float32": True}, {"kind": "score"}, {"resume_after": 2}, {"resume_after": 3}],
    ids=str,
)
def test_one_that_runs_in_another_way_shares_no_batch(fields: dict[str, Any]) -> None:
    layout = Batch((Text(text="w w w w w "), Text(text="x")))
    for plain in (request(5), request(5, layout=layout)):
        assert cut([plain, plain.replace(**fields)]) == [(plain,), (plain.replace(**fields),)]


@pytest.mark.parametrize("fields", [{"attention": "eager"}, {"float32": True}], ids=str)
def test_those_that_run_in_the_same_other_way_do(fields: dict[str, Any]) -> None:
    assert [len(batch) for batch in cut([request(5, f"w{n}", **fields) for n in range(3)])] == [3]


def test_two_rows_of_one_batch_are_two_requests_of_one_run() -> None:
    one = request(5)
    layout = Batch((one.prompt, Text(text="x"), one.prompt))
    first, last = (one.replace(layout=layout, row=row) for row in (0, 2))

    assert cut([first, last]) == [(first, last)]
    assert first.id != last.id


@pytest.mark.parametrize("change", [{"pad_token_id": 7}, {"attention_mask": False}, {"padding": "right"}], ids=str)
def test_a_batch_that_is_laid_out_otherwise_is_another(change: dict[str, Any]) -> None:
    one = request(5)
    rows = (one.prompt, Text(text="x"))

    assert len(cut([one.replace(layout=Batch(rows)), one.replace(layout=Batch(rows, **change))])) == 2


def test_one_that_runs_in_another_way_is_not_answered_by_a_plain_one() -> None:
    plain, eager = request(5, layout="alone"), request(5, attention="eager")

    assert unite([plain, eager]) == {plain: plain, eager: eager}
