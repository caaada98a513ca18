"""What a recording would change, as a human sees it; accepted and rejected pin by pin, and nothing lost."""

from __future__ import annotations

import dataclasses
from array import array
from pathlib import Path

import pytest

from harness.errors import CannotRun, UsageError
from harness.pins import files, review
from harness.pins.pin import Floor, Header, Lane, Pin, PinFile
from harness.pins.review import accept, changes, header_changes, pending, pending_path, propose, reject
from harness.record import Step

LANE = Lane("cpu", "bfloat16", "none", "sdpa", "8")
HEADER = Header(
    *("basics", "smollm2", LANE, "w1", "t1", "c1", 2, (2,), "left"),
    generations={"greedy": {"temperature": 1.0}, "warm": {"top_k": 5}},
    environment={"torch": "2.6.0", "transformers": "5.22"},
    floor=Floor(0.1, 1e-3, 0.1),
)


def pin(prompt="capital", ids=(10, 11, 12), text="Paris it is", logprob=-0.5, **changes):
    steps = tuple(Step(logprob, array("i", (token,)), array("f", (logprob,)), 27.0) for token in ids)
    return dataclasses.replace(Pin(prompt, "greedy", "d1", (1, 2), ids, "eos", text, steps), **changes)


def a_file(*pins, path="x.pins", **changes):
    return PinFile(str(path), dataclasses.replace(HEADER, **changes), {one.name: one for one in pins})


def only(old, new):
    (change,) = changes(a_file(old), a_file(new))
    return change


def test_every_pin_is_added_changed_unchanged_or_removed():
    old = a_file(pin("a"), pin("b"), pin("c"))
    found = changes(old, a_file(pin("d"), pin("b", text="other"), pin("a")))

    assert [(one.name, one.kind) for one in found] == [
        ("a@greedy", "unchanged"),
        ("b@greedy", "changed"),
        ("c@greedy", "removed"),
        ("d@greedy", "added"),
    ]
    assert [one.kind for one in changes(None, a_file(pin("a")))] == ["added"]
    assert found[-1].lines == ("text    'Paris it is'", "finish  eos, 3 tokens")


def test_tokens_and_text_are_drawn_around_the_first_difference():
    old = pin(ids=(1, 22, 333, 4, 5, 66, 7), text="x" * 30 + "green\n tea")
    new = pin(ids=(1, 22, 333, 4, 5, 7), text="x" * 30 + "great", finish="length")

    lines = only(old, new).lines

    assert lines == (
        "finish  eos -> length",
        "tokens  7 -> 6",
        "ids  old  1 22 333 4 5 66 7 <eos>",
        "     new  1 22 333 4 5 7 <length>",
        "                       ^ token 5",
        "text old  … " + "x" * 21 + "green\\n tea",
        "     new  … " + "x" * 21 + "great",
        " " * 36 + "^",
    )
    assert lines[2].index("66") == lines[3].index("7 <") == lines[4].index("^")
    assert lines[5].index("en\\n") == lines[6].index("at") == lines[7].index("^")


def test_a_text_that_only_ends_sooner_has_its_caret_after_it():
    lines = only(pin(), pin(ids=(10, 11), text="Paris it")).lines

    assert lines[1:4] == ("ids  old  10 11 12 <eos>", "     new  10 11 <eos>", "                ^ token 2")


def test_numbers_alone_are_a_change_with_its_size_and_rounding_is_none():
    moved = pin(steps=(*pin().steps[:2], dataclasses.replace(pin().steps[2], logprob=-0.75)))

    assert only(pin(), moved).kind == "changed"
    assert only(pin(), moved).lines == ("logprob of the same tokens moved by up to 0.25 nats, at token 2",)
    assert only(pin(), pin(logprob=-0.5001)).kind == "unchanged"  # the grid of this lane is 1/1024
    assert only(pin(), pin(fragility=3.0)).kind == "unchanged"


def test_another_prompt_is_said_first():
    assert only(pin(), pin(prompt_digest="d2")).lines == ("prompt  its rendered text is another one",)
    assert only(pin(), pin(prompt_ids=(1, 2, 3))).lines == ("prompt  the same text is tokenized otherwise: 2 -> 3 ids",)
    assert only(pin(), pin(pads=3, padding="right", batch_size=4)).lines == ("batch   1 -> 4", "padding 0 -> 3 right")


def test_what_differs_in_the_headers_is_said_of_the_pins_own_generation():
    new = dataclasses.replace(
        HEADER,
        weights="w2",
        environment={"torch": "2.7.0", "cpu": "fast"},
        floor=Floor(0.2, 1e-3, 0.1),
        generations={"greedy": {"temperature": 0.5, "top_p": 0.9}, "warm": {"top_k": 6}},
    )

    assert header_changes(HEADER, HEADER, "greedy") == ()
    assert header_changes(HEADER, new, "greedy") == (
        "weights w1 -> w2",
        "cpu unset -> fast",
        "torch 2.6.0 -> 2.7.0",
        "transformers 5.22 -> unset",
        "floor rms 0.1 -> 0.2",
        "generation greedy: temperature 1.0 -> 0.5",
        "generation greedy: top_p unset -> 0.9",
    )
    (change,) = changes(a_file(pin()), dataclasses.replace(a_file(pin()), header=new))
    assert (change.kind, change.conditions) == ("unchanged", header_changes(HEADER, new, "greedy"))


@pytest.fixture
def path(tmp_path):
    """Three pins, and a recording of other ones that waits."""
    path = str(tmp_path / "smollm2@here.pins")
    old = a_file(pin("capital"), pin("colors"), pin("river"), path=path)
    files.write(old, old.pins)
    new = a_file(*(pin(name, text="new") for name in ("capital", "capitals", "colors")), path=path)
    propose(new, new.pins)
    return path


def texts(path):
    found = files.read(path)
    return {one.prompt: one.text for one in found.pins.values()} if found else None


BEFORE = {"capital": "Paris it is", "colors": "Paris it is", "river": "Paris it is"}


def test_a_recording_waits_beside_the_pins_and_changes_nothing(path):
    assert texts(path) == BEFORE
    assert list(pending(path).pins) == ["capital@greedy", "capitals@greedy", "colors@greedy"]
    assert pending_path(path) == path + ".new"


def test_what_is_accepted_moves_over_and_the_rest_goes_on_waiting(path):
    assert accept(path, ["capital*"]) == ("capital@greedy", "capitals@greedy")

    assert texts(path) == BEFORE | {"capital": "new", "capitals": "new"}
    assert texts(pending_path(path)) == {"colors": "new"}
    assert accept(path, ["*"]) == ("colors@greedy",)
    assert pending(path) is None
    assert sorted(one.name for one in Path(path).parent.iterdir()) == [Path(path).name]


def test_what_is_rejected_is_dropped(path):
    assert reject(path, ["capital", "colors@greedy"]) == ("capital@greedy", "colors@greedy")

    assert texts(path) == BEFORE
    assert texts(pending_path(path)) == {"capitals": "new"}


def test_accepted_pins_say_what_they_were_recorded_under(path):
    reject(path, ["*"])
    propose(a_file(pin("river", text="new"), path=path, environment={"torch": "2.7.0"}), ["river@greedy"])
    accept(path, ["river"])

    found = files.read(path)
    assert files.header_of(found, "river@greedy").environment == {"torch": "2.7.0"}
    assert files.header_of(found, "capital@greedy").environment == HEADER.environment


def test_the_first_pins_of_all_can_be_accepted_too(path):
    Path(path).unlink()
    accept(path, ["colors"])

    assert texts(path) == {"colors": "new"}


@pytest.mark.parametrize("act", [accept, reject])
def test_a_pattern_that_fits_nothing_is_an_error_and_nothing_happens(path, act):
    with pytest.raises(UsageError, match=r"fits 'colour@greedy'; did you mean 'colors@greedy'\?"):
        act(path, ["capital", "colour@greedy"])

    assert texts(path) == BEFORE
    assert len(pending(path).pins) == 3


def test_nothing_to_review_says_so(tmp_path):
    with pytest.raises(UsageError, match="nothing is waiting to be reviewed"):
        accept(str(tmp_path / "x.pins"), ["*"])


@pytest.mark.parametrize("failing", ["write", "merge"])
def test_where_accepting_fails_half_way_nothing_is_lost(path, failing, monkeypatch):
    def fail(*_, **__):
        raise CannotRun("the disk is full")

    monkeypatch.setattr(files, failing, fail)
    with pytest.raises(CannotRun, match="full"):
        accept(path, ["colors"])
    monkeypatch.undo()

    assert texts(pending_path(path))["colors"] == "new"
    assert texts(path)["colors"] in ("new", "Paris it is")
    accept(path, ["colors"])
    assert texts(path) == BEFORE | {"colors": "new"}
    assert set(texts(pending_path(path))) == {"capital", "capitals"}


def test_a_pin_file_that_is_damaged_keeps_the_recording(path):
    Path(path).write_text(Path(path).read_text().replace("Paris", "Lyons"))

    with pytest.raises(files.PinsUnreadable, match="edited by hand"):
        accept(path, ["colors"])

    assert len(review.pending(path).pins) == 3
