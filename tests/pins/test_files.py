"""Pin files: what is written is read back, what is damaged says so, and nobody's pin is lost."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

from harness.errors import CannotRun
from harness.pins import files, locking, packing
from harness.pins.files import PinsUnreadable, header_of, nearest, path_of, read, slug, stored, write
from harness.pins.pin import Floor, Header, Lane, Pin, PinFile
from harness.record import Step

EXACT = Lane("cpu", "float32", "none", "sdpa", "any")
COARSE = Lane("cpu", "bfloat16", "none", "sdpa", "8")


def header(lane=EXACT, **changes):
    made = Header(
        suite="basics",
        target="smollm2",
        lane=lane,
        weights="w1",
        tokenizer="t1",
        template="c1",
        pad_token_id=2,
        eos_token_ids=(2, 7),
        padding_side="left",
        generations={"greedy": {"do_sample": False, "temperature": 1.0}},
        environment={"torch": "2.6.0", "cpu": "fast"},
        floor=Floor(1e-4, 1e-6, 1e-3),
    )
    return dataclasses.replace(made, **changes)


def pin(prompt="capital", text="Paris is it", finish="eos", shift=0.0, **changes):
    steps = tuple(
        Step(-0.1 - shift, array("i", (i, 90000 + i)), array("f", (-0.1 - shift, -2.3 - i)), 27.125) for i in range(3)
    )
    made = Pin(prompt, "greedy", "d1", (1, 2, 3), (0, 1, 2), finish, text, steps, "left", 4, 8, 0.25)
    return dataclasses.replace(made, **changes)


def a_file(path, *pins, **changes):
    return PinFile(str(path), header(**changes), {one.name: one for one in pins})


def recorded(path, *pins, **changes):
    file = a_file(path, *pins, **changes)
    write(file, file.pins)
    return Path(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pins" / "basics" / "smollm2@here.pins"


# Packing: what is written against what is read


def test_in_float32_every_bit_comes_back(path):
    steps = (
        Step(-1.2345678e-7, array("i", (3, 151000, 2**31 - 1)), array("f", (-1.2345678e-7, -17.3, -88.8)), 27.3),
        Step(float("-inf"), array("i"), array("f"), float("inf")),
    )
    steps = tuple(dataclasses.replace(one, logprob=array("f", [one.logprob])[0]) for one in steps)
    steps = tuple(dataclasses.replace(one, max_logit=array("f", [one.max_logit])[0]) for one in steps)
    file = a_file(path, pin(steps=steps))
    write(file, file.pins)

    found = read(str(path))

    assert (found.header, found.pins) == (file.header, file.pins)
    assert files.storage_rounding(EXACT) == 0


@pytest.mark.parametrize("lane", [COARSE, dataclasses.replace(EXACT, quantization="int8")])
def test_elsewhere_log_probabilities_move_by_no_more_than_the_rounding(path, lane):
    values = [-(1.037**i) / 7 for i in range(200)]
    steps = (Step(values[0], array("i", range(200)), array("f", values), 27.125),)
    recorded(path, pin(steps=steps), lane=lane)

    (step,) = read(str(path)).pins["capital@greedy"].steps
    moved = [abs(a - b) for a, b in zip(step.top_logprobs, steps[0].top_logprobs, strict=True)]

    assert files.storage_rounding(lane) == 2**-11
    assert 0.8 * 2**-11 < max(moved) <= 2**-11
    assert (step.top_ids, step.max_logit) == (steps[0].top_ids, 27.125)
    assert stored(pin(steps=steps), lane) == read(str(path)).pins["capital@greedy"]


def test_what_is_not_finite_stays_so_on_the_grid():
    steps = (Step(float("-inf"), array("i", (5, 6)), array("f", (float("inf"), -3e9)), 1.5),)

    (found,) = packing.unpack(packing.pack((*steps,), packing.PLACES))

    assert (found.logprob, found.top_logprobs[0]) == (float("-inf"), float("inf"))
    assert -(2**21) < found.top_logprobs[1] < -(2**19)  # as far down as the grid goes
    nan = Step(float("nan"), array("i"), array("f"), 1.5)
    assert packing.unpack(packing.pack((nan,), packing.PLACES))[0].logprob != 0


def test_a_pin_without_steps_is_one(path):
    recorded(path, pin(steps=()))

    assert read(str(path)).pins["capital@greedy"].steps == ()


def test_texts_come_back_and_nothing_in_the_file_is_invisible(path):
    text = 'é 漢 🙂 "quoted" \\ \n\r\u2028\u202e\x7f\ud800'
    recorded(path, pin(text=text))
    shown = path.read_text(encoding="utf-8")

    assert read(str(path)).pins["capital@greedy"].text == text
    assert "é 漢 🙂" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert len(shown.splitlines()) == 2


def test_a_line_begins_with_what_a_human_reads(path):
    recorded(path, pin())

    first, second = path.read_text().splitlines()
    assert first.startswith('{"kind":"harness pins","format":1,"suite":"basics","target":"smollm2","lane":{')
    assert second.startswith(
        '{"prompt":"capital","generation":"greedy","finish":"eos","text":"Paris is it","ids":[0,1,2],'
    )
    assert second.index('"numbers"') > second.index('"fragility"')


def test_nothing_is_not_an_error(path):
    assert read(str(path)) is None


# Writing: only what is accepted


def test_only_what_is_accepted_changes_and_the_rest_stays_byte_for_byte(path):
    recorded(path, pin("a"), pin("b"), pin("c"))
    before = path.read_bytes().splitlines()

    write(a_file(path, pin("a", text="new"), pin("b", text="new"), pin("c", text="new")), ["b@greedy"])

    after = path.read_bytes().splitlines()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    assert [one.text for one in read(str(path)).pins.values()] == ["Paris is it", "new", "Paris is it"]


def test_pins_are_sorted_by_name(path):
    recorded(path, pin("b"), pin("a"))
    recorded(path, pin("aa"))

    assert list(read(str(path)).pins) == ["a@greedy", "aa@greedy", "b@greedy"]


def test_recording_the_same_again_leaves_the_file_alone(path):
    recorded(path, pin("a"), pin("b"), lane=COARSE)
    before = (path.read_bytes(), path.stat().st_ino)

    # In another order of everything that has none.
    recorded(path, pin("b"), pin("a"), lane=COARSE, environment={"cpu": "fast", "torch": "2.6.0"})

    assert (path.read_bytes(), path.stat().st_ino) == before


def test_another_packing_of_the_same_numbers_changes_no_line(path, monkeypatch):
    recorded(path, pin("a"), pin("b"))
    before = path.read_bytes()
    compress = packing.zlib.compress
    monkeypatch.setattr(packing.zlib, "compress", lambda content, level: compress(content, 1))
    assert packing.pack(pin().steps, 0) not in before.decode()

    recorded(path, pin("a"), pin("b", text="new"))

    assert before.splitlines()[1] in path.read_bytes().splitlines()


def test_unused_pins_are_taken_out_and_an_empty_file_goes(path):
    file = a_file(path, pin("a"), pin("b"))
    write(file, file.pins)

    write(file, (), removed=["a@greedy"])
    assert list(read(str(path)).pins) == ["b@greedy"]
    write(file, (), removed=["b@greedy", "never@there"])
    assert not path.exists()


def test_the_header_stays_where_nothing_was_accepted(path):
    recorded(path, pin("a"))
    before = path.read_bytes()

    write(a_file(path, pin("a", text="new"), environment={"torch": "9"}, floor=Floor(1, 1, 1)), [])

    assert path.read_bytes() == before


def test_a_pin_goes_on_to_say_what_it_was_recorded_under(path):
    recorded(path, pin("a"), pin("b"))
    other = {"greedy": {"do_sample": False, "temperature": 0.5}}
    recorded(path, pin("b"), environment={"torch": "2.7.0"}, weights="w2", generations=other)

    found = read(str(path))
    assert header_of(found, "a@greedy").environment["torch"] == "2.6.0"
    assert header_of(found, "a@greedy") == header()
    new = header_of(found, "b@greedy")
    assert (new.environment, new.weights, new.generations) == ({"torch": "2.7.0"}, "w2", other)

    recorded(path, pin("a"), pin("b"), environment={"torch": "2.8.0"})
    assert read(str(path)).header.environment == {"torch": "2.8.0"}
    assert not read(str(path)).under


def test_a_new_floor_and_a_new_generation_config_are_the_whole_files(path):
    recorded(path, pin("a"))
    line = path.read_bytes().splitlines()[1]
    recorded(
        path, pin("b", generation="warm"), floor=Floor(2e-4, 1, 1, ("repeat",)), generations={"warm": {"top_k": 5}}
    )

    found = read(str(path))
    assert found.header.floor == Floor(2e-4, 1, 1, ("repeat",))
    assert found.header.generations == header().generations | {"warm": {"top_k": 5}}
    assert line in path.read_bytes().splitlines()
    assert not found.under


# What is wrong with a file


def damaged(path, change):
    recorded(path, pin("a"), pin("b"), pin("c"))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(PinsUnreadable) as caught:
        read(str(path), "suites/basics.yaml")
    return str(caught.value)


def test_a_line_edited_by_hand_says_so_and_what_to_type(path):
    message = damaged(
        path,
        lambda content: content.replace(
            b'"b","generation":"greedy","finish":"eos"', b'"b","generation":"greedy","finish":"stop"'
        ),
    )

    assert f"{path}:3: pin 'b@greedy' was edited by hand" in message
    assert f"git checkout {path}" in message
    assert "pytest suites/basics.yaml --update-pins" in message


def test_an_edited_header_says_so(path):
    assert f"{path}:1: the header was edited by hand" in damaged(path, lambda text: text.replace(b'"w1"', b'"w2"', 1))


def test_a_file_that_was_cut_off_says_so(path):
    assert f"{path}:4: pin 'c@greedy' is cut off" in damaged(path, lambda text: text[:-40])


def test_a_conflict_names_its_line_and_both_ways_out(path):
    def conflict(content):
        lines = content.splitlines()
        return b"\n".join([*lines[:2], b"<<<<<<< HEAD", lines[2], b"=======", lines[2], b">>>>>>> b", b""])

    message = damaged(path, conflict)
    assert f"{path}:3: a merge conflict" in message
    assert f"git checkout --ours {path}" in message


def test_a_pin_that_is_there_twice_says_so(path):
    def twice(content):
        return content + content.splitlines()[2] + b"\n"

    assert "pin 'b@greedy' is there 2 times" in damaged(path, twice)


def test_a_newer_format_asks_for_a_newer_harness(path):
    message = damaged(path, lambda text: text.replace(b'"format":1', b'"format":2'))

    assert "format 2, this one reads up to 1" in message
    assert "pip install --upgrade harness" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\n{}\n", "the header is not JSON"),
        (b"[1]\n", "the header is not a JSON object"),
        (b"suite: basics\n", "the header is not JSON"),
        (b"\xff\xfe\n", "the header is not JSON"),
        (b'{"kind":"other"}\n', "the header was edited by hand"),
    ],
)
def test_what_is_no_pin_file_says_so(path, content, said):
    assert said in damaged(path, lambda _: content)


def test_a_line_that_is_not_json_says_which(path):
    def with_a_line(content):
        first, *rest = content.splitlines(keepends=True)
        return b"".join([first, b"hello\n", *rest])

    assert f"{path}:2: this line is not JSON" in damaged(path, with_a_line)


def test_a_sound_line_with_unsound_contents_is_no_traceback(path):
    def without_numbers(content):
        lines = content.splitlines()
        data = json.loads(lines[2])
        del data["numbers"], data["sum"]
        return b"\n".join([*lines[:2], files._as_line(data), *lines[3:], b""])

    assert f"{path}:3: pin 'b@greedy' cannot be understood: KeyError('numbers')" in damaged(path, without_numbers)


def test_line_ends_of_another_system_and_a_missing_last_one_do_no_harm(path):
    recorded(path, pin("a"), pin("b"))
    whole = read(str(path)).pins
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))

    assert read(str(path)).pins == whole


def test_recording_a_damaged_pin_again_heals_it_but_loses_no_other(path):
    recorded(path, pin("a"), pin("b"))
    path.write_bytes(path.read_bytes().replace(b"Paris", b"Lyons"))
    broken = path.read_bytes()

    with pytest.raises(PinsUnreadable, match="pin 'a@greedy' was edited"):
        recorded(path, pin("b"))
    assert path.read_bytes() == broken
    recorded(path, pin("a"), pin("b"))
    assert read(str(path)).pins == {one.name: stored(one, EXACT) for one in (pin("a"), pin("b"))}


def test_a_newer_file_is_never_written_over(path):
    recorded(path, pin("a"))
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))

    with pytest.raises(PinsUnreadable, match="newer"):
        recorded(path, pin("a"))


def test_a_file_of_another_target_is_not_mixed_with(path):
    recorded(path, pin("a"))

    with pytest.raises(PinsUnreadable, match=r"holds pins of basics smollm2 .*, not of basics other"):
        recorded(path, pin("b"), target="other")


def test_a_folder_that_cannot_be_written_is_a_plain_error(path):
    path.parent.mkdir(parents=True)
    path.mkdir()

    with pytest.raises(PinsUnreadable, match="cannot be read"):
        read(str(path))
    with pytest.raises(CannotRun, match="cannot be written"):
        recorded(path.parent.parent.parent / "pins" / "basics" / "smollm2@here.pins" / ("x" * 300), pin())


def test_where_writing_fails_the_old_file_stands_and_nothing_lies_around(path, monkeypatch):
    recorded(path, pin("a"))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locking.os, "fsync", full)
    with pytest.raises(CannotRun, match="No space left"):
        recorded(path, pin("b"))

    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


# Several at once

RECORD = """
import sys
from tests_of_pins import pin, recorded
path, prompts = sys.argv[1], sys.argv[2:]
for prompt in prompts:
    recorded(path, pin(prompt))
"""


def test_of_processes_that_record_at_once_every_pin_is_kept(path, tmp_path):
    (tmp_path / "tests_of_pins.py").write_text(Path(__file__).read_text())
    names = [[f"p{writer}-{i}" for i in range(6)] for writer in range(3)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(files.__file__).parents[2])])}
    command = [sys.executable, "-c", RECORD, str(path)]
    running = [subprocess.Popen([*command, *mine], env=environment) for mine in names]

    assert [one.wait(60) for one in running] == [0, 0, 0]
    assert sorted(read(str(path)).pins) == sorted(f"{name}@greedy" for mine in names for name in mine)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def lock_of(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".lock")


def test_the_lock_of_a_process_that_is_gone_is_taken_over(path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock_of(path).write_text(f"{gone.pid} on {platform.node()}")

    recorded(path, pin("a"))

    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("holder", [f"{os.getpid()} on {platform.node()}", "4194999 on elsewhere", ""])
def test_a_lock_that_may_be_held_is_waited_for_and_then_named(path, holder, monkeypatch):
    monkeypatch.setattr(locking, "WAIT", 0.1)
    lock_of(path).write_text(holder)

    with pytest.raises(CannotRun, match=r"is held by .*: waited 0.1 seconds") as caught:
        recorded(path, pin("a"))

    assert f"rm {lock_of(path)}" in caught.value.remedy
    assert lock_of(path).read_text() == holder
    assert not path.exists()


# Names of files


def test_the_path_lies_beside_the_suite_and_names_target_and_lane():
    assert path_of("suites/basics.yaml", "basics", "smollm2", COARSE) == (
        "suites/pins/basics/smollm2@cpu+bfloat16+none+sdpa+8.pins"
    )


def test_names_are_safe_and_no_two_are_the_same():
    names = ["a", "A", "a b", "a/b", "a-b", "a+b", "a@b", "..", ".", "", "é", "è", "qwen2.5", "x" * 300, "x" * 301]
    names += [slug("A"), slug(slug("A"))]
    slugs = [slug(name) for name in names]

    assert slug("qwen2.5") == "qwen2.5"
    assert len(set(slugs)) == len(names)
    assert [one for one in slugs if not re.fullmatch("[a-z0-9_][a-z0-9_.-]{0,75}", one)] == []


def test_lanes_that_join_to_the_same_words_have_paths_of_their_own():
    one, other = Lane("cpu", "a-b", "c", "d", "e"), Lane("cpu", "a", "b-c", "d", "e")

    assert path_of("s.yaml", "s", "t", one) != path_of("s.yaml", "s", "t", other)


def test_the_nearest_lane_is_the_one_with_most_in_common(tmp_path):
    suite = str(tmp_path / "s.yaml")
    wanted = COARSE
    here = path_of(suite, "s", "t", wanted)
    assert nearest(here, wanted) is None

    lanes = [dataclasses.replace(wanted, device="cuda"), dataclasses.replace(wanted, rows="1"), EXACT]
    for lane in lanes:
        recorded(path_of(suite, "s", "t", lane), pin(), lane=lane, suite="s", target="t")
    recorded(path_of(suite, "s", "other", wanted), pin(), lane=wanted, suite="s", target="other")
    recorded(here, pin(), lane=wanted, suite="s", target="t")

    assert nearest(here, wanted) == lanes[1]
    Path(path_of(suite, "s", "t", lanes[1])).write_text("damaged")
    assert nearest(here, wanted) == EXACT
