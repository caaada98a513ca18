"""Suite files to suites: what is read, what is refused, and where a mistake is pointed at."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from harness import yaml_source, yaml_tree
from harness.errors import SuiteError, UsageError
from harness.load import Loaded, load, load_all

SUITE = """\
suite: small
models: {tiny: some/path}
generation: {warm: {do_sample: true, temperature: 0.7}}
prompts:
  plain: "1, 2,"
  ask: {text: "Capital of {country}?", rows: [{id: fr, country: France}, {id: jp, country: Japan, answer: Tokyo}]}
tests:
  - name: first
    prompts: [plain]
    expect: {stops_at_eos: true}
"""


def written(folder: Path, text: str | bytes, name: str = "suite.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def changed(old: str, new: str) -> str:
    assert old in SUITE
    return SUITE.replace(old, new)


def problems(path: Path) -> list[str]:
    """`line:column: message` of every problem of the file."""
    with pytest.raises(SuiteError) as caught:
        load(path)
    return [f"{one.line}:{one.column}: {one.message}" for one in caught.value.problems]


def test_a_suite_is_loaded_with_the_lines_of_its_tests(tmp_path: Path) -> None:
    path = written(tmp_path, SUITE + "  - {name: second, prompts: [ask], expect: {contains: x}}\n")
    loaded = load(path)
    assert loaded.suite.suite == "small"
    assert loaded.suite.models["tiny"].path == "some/path"
    assert (loaded.file, loaded.lines, loaded.files) == (str(path), {"first": 8, "second": 11}, {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("no", "yes", "on", "off", "12:30", "2024-01-01", "0o8", "1_000", "=", "nulls")),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("012", 12),
        ("-7", -7),
        ("0o17", 15),
        ("0x1f", 31),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("2.", 2.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ('"5"', "5"),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("!!float 1", 1.0),
    ],
)
@pytest.mark.parametrize("parser", ["CSafeLoader", "SafeLoader"])
def test_scalars_are_those_of_yaml_1_2(text: str, value: object, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name: part for name, part in vars(yaml_source._Loader).items() if "resolve" in name}
    monkeypatch.setattr(yaml_source, "_Loader", type("_Loader", (getattr(yaml, parser),), {**own, "levels": 0}))
    tree = yaml_tree.Tree()
    read = tree.value(tree.add(yaml_source.Source("f.yaml", f"a: {text}\n")))
    assert read == {"a": value}
    assert type(read["a"]) is type(value)
    assert tree.problems == []


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = changed(
        "models: {tiny: some/path}",
        "models:\n  tiny: &tiny {path: some/path, dtype: float32}\n  same: *tiny\n  half: {<<: *tiny, dtype: float16}\n"
        "  both: {<<: [{device: cpu}, *tiny], dtype: auto}",
    )
    models = load(written(tmp_path, text)).suite.models
    assert models["same"] == models["tiny"]
    assert (models["half"].path, models["half"].dtype) == ("some/path", "float16")
    assert (models["both"].path, models["both"].dtype, models["both"].device) == ("some/path", "auto", "cpu")


@pytest.mark.parametrize(
    "raw",
    [b"\xef\xbb\xbf" + SUITE.encode(), SUITE.replace("\n", "\r\n").encode(), b"---\n" + SUITE.encode() + b"...\n"],
    ids=["byte order mark", "CRLF", "document markers"],
)
def test_a_byte_order_mark_crlf_and_document_markers_are_fine(tmp_path: Path, raw: bytes) -> None:
    assert load(written(tmp_path, raw)).suite == load(written(tmp_path, SUITE, "plain.yaml")).suite


NAMES = "use letters, digits, '_', '.' and '-' only, and begin with a letter, a digit or '_'"

WRONG = [
    # unknown and missing keys
    ("tiny: some/path", "tiny: {path: x, revison: a}",
     "2:26: models.tiny.revison: unknown key; did you mean 'revision'?"),
    ("suite: small", "siute: small", "1:1: siute: unknown key; did you mean 'suite'?"),
    ("    prompts: [plain]\n", "", "8:5: tests.0.prompts: missing; this key is required"),
    ("stops_at_eos: true", "stop_at_eos: true",
     "10:14: tests.0.expect.stop_at_eos: unknown key; did you mean 'stops_at_eos'?"),
    ("stops_at_eos: true", "deterministic: {qq: 3}",
     "10:30: tests.0.expect.deterministic.qq: unknown key; valid keys: runs, fresh_process, allow_rounding"),
    ("stops_at_eos: true", "contains: {texts: a, ignorecase: true}",
     "10:35: tests.0.expect.contains.ignorecase: unknown key; did you mean 'ignore_case'?"),
    ("do_sample: true, temperature: 0.7", "max_length: 9",
     "3:21: generation.warm.max_length: max_length counts the prompt; write max_new_tokens"),
    # kinds of values
    ("stops_at_eos: true", "contains: 5", '10:24: tests.0.expect.contains: expected text; write "5"'),
    ("stops_at_eos: true", "contains: [a, true]", '10:28: tests.0.expect.contains.1: expected text; write "true"'),
    ("stops_at_eos: true", "regex: {a: b}", "10:22: tests.0.expect.regex.a: unknown key; valid keys: pattern"),
    ("stops_at_eos: true", "contains: ", "10:14: tests.0.expect.contains: empty; write a value, or leave the key out"),
    ("stops_at_eos: true", "", "10:13: tests.0.expect: nothing is expected; write at least one expectation"),
    ("stops_at_eos: true", "deterministic: {runs: '5'}",
     "10:36: tests.0.expect.deterministic.runs: expected an integer, got the text '5'"),
    ("stops_at_eos: true", "deterministic: {runs: true}",
     "10:36: tests.0.expect.deterministic.runs: expected an integer, got true"),
    ("temperature: 0.7", "temperature: hot",
     "3:51: generation.warm.temperature: expected a number, got the text 'hot'"),
    ("temperature: 0.7", "temperature: 0", "3:51: generation.warm.temperature: must be at least 0.0001, got 0"),
    ("temperature: 0.7", "use_cache: no", "3:49: generation.warm.use_cache: expected true or false, got the text 'no'"),
    ("do_sample: true, ", "", "3:20: generation.warm: temperature has no effect without do_sample: true"),
    ("[plain]", "plain", "9:14: tests.0.prompts: expected a list, got the text 'plain'"),
    ("[plain]", "[]", "9:14: tests.0.prompts: must not be empty"),
    ("[plain]", "[plain, plain]", "9:14: tests.0.prompts: plain is listed twice; keep one of them"),
    ("suite: small", "suite: small\nquantization: [none, none]",
     "2:15: quantization: none is listed twice; keep one of them"),
    ("some/path", "[a]", "2:16: models.tiny: expected a mapping of keys and values, got a list"),
    ("some/path", "{path: x, dtype: float23}",
     "2:33: models.tiny.dtype: expected 'auto', 'float32', 'bfloat16' or 'float16', got the text 'float23'; "
     "did you mean 'float32'?"),
    ("some/path", "{path: x, device: gpu}",
     "2:34: models.tiny.device: expected cpu, cuda, cuda:NUMBER, mps or auto, got the text 'gpu'"),
    ("tiny:", "'t y':", f"2:10: models.t y: a name cannot be the text 't y': {NAMES}"),
    ("suite: small", "suite: ../x", f"1:8: suite: a name cannot be the text '../x': {NAMES}"),
    ("suite: small", "suite: 5", '1:8: suite: expected text; write "5"'),
    # names that do not exist
    ("[plain]", "[plian]", "9:15: tests.0.prompts.0: no prompt is called 'plian'; did you mean 'plain'?"),
    ("[plain]", "[x]", "9:15: tests.0.prompts.0: no prompt is called 'x'; there are: plain, ask"),
    ("[plain]", "[plain]\n    generation: wram",
     "10:17: tests.0.generation: no generation is called 'wram'; did you mean 'warm'?"),
    ("[plain]", "[plain]\n    only: {model: tidy}",
     "10:19: tests.0.only.model: no model is called 'tidy'; did you mean 'tiny'?"),
    ("[plain]", "[plain]\n    only: {device: [gpu]}",
     "10:21: tests.0.only.device.0: no kind of device is called 'gpu'; did you mean 'cpu'?"),
    ("[plain]", "[plain]\n    xfail: [{quantization: nf5, reason: x}]",
     "10:28: tests.0.xfail.0.quantization: no quantization level is called 'nf5'; did you mean 'nf4'?"),
    ("[plain]", "[plain]\n    xfail: [{prompt: ask-de, reason: x}]",
     "10:22: tests.0.xfail.0.prompt: no prompt is called 'ask-de'; did you mean 'ask-jp'?"),
    ("suite: small", "suite: small\nextends: [a]", "2:1: extends: expected the path of another suite file"),
    ("suite: small", "suite: small\nextends:", "2:1: extends: expected the path of another suite file"),
    ("suite: small", "suite: small\nquantization: [none, nf44]",
     "2:22: quantization.1: no quantization level is called 'nf44'; did you mean 'nf4'?"),
    ("suite: small", "suite: small\nbaseline: {quantization: nf4}",
     "2:26: baseline.quantization: 'nf4' is not among the quantization of this suite: none"),
    ("tests:", "tests:\n  - {name: first, prompts: [plain], expect: {contains: a}}",
     "9:11: tests.1.name: 'first' is already the name of the test on line 8"),
    # rows
    ("{country}?", "{contry}?",
     "6:15: prompts.ask.text: {contry} is not a column of the rows of 'ask'; did you mean 'country'?"),
    ("[plain]\n    expect: {stops_at_eos: true", "[ask]\n    expect: {contains: '{answer}'",
     "10:24: tests.0.expect.contains: row 'fr' of 'ask' has no column 'answer'; add it there"),
    ("id: jp", "id: fr", "6:79: prompts.ask.rows.1.id: 'fr' is already the id of another row"),
    ("id: jp", "id: j p",
     "6:79: prompts.ask.rows.1.id: 'j p' cannot be an id: use letters, digits, '_', '.' and '-' only"),
    ("plain:", "ask-fr: x\n  plain:",
     "7:52: prompts.ask.rows.0.id: this row is called 'ask-fr', and so is another prompt"),
    ("Japan", "[Japan]", "6:92: prompts.ask.rows.1.country: expected text, a number or true or false"),
    # YAML
    ("suite: small", "suite: small\nsuite: again", "2:1: suite: duplicate key, first used on line 1; keep one of them"),
    ("tiny:", "1:", '2:10: a key must be text; write "1"'),
    ("some/path", "!!python/object/apply:os.system [ls]",
     "2:16: tag !!python/object/apply:os.system is not allowed; a suite is plain data: write the value without it"),
    ("some/path", "!function a.b",
     "2:16: tag !function is not allowed; a suite is plain data: write the value without it"),
    ("some/path", "!!int abc", "2:16: cannot be read as int; quote the text"),
    ("some/path", "&a [*a]", "2:16: it contains itself through an alias; write it out"),
    ("some/path", "&a {<<: *a}", "2:16: it contains itself through an alias; write it out"),
    ("some/path", "{path: x, <<: 5}", "2:30: <<: expected an alias of a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "problem"), WRONG, ids=[problem for _, _, problem in WRONG])
def test_one_mistake_is_one_problem_at_its_place(tmp_path: Path, old: str, new: str, problem: str) -> None:
    found = problems(written(tmp_path, SUITE.replace(old, new, 1)))
    assert found == [problem]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "1:1: the file is empty; a suite begins with `suite: NAME`"),
        (b"# only a comment\n", "1:1: the file is empty; a suite begins with `suite: NAME`"),
        (b"- a\n", "1:1: not a mapping; a suite begins with `suite: NAME` at the top"),
        (b"just text\n", "1:1: not a mapping; a suite begins with `suite: NAME` at the top"),
        (b"a: 1\n---\nb: 1\n",
         "2:1: a second document; a suite file is one document: remove this `---` or make it a file of its own"),
        (b"a: x\nb: caf\xe9\n", "2:7: not UTF-8 text; save the file as UTF-8"),
        (b"a: x\nb: \x07\n", '2:4: control character \\x07; write it as "\\x07" between double quotes'),
        (b"a:\n\tb: 1\n", "2:1: not YAML: a tab in the indentation; use spaces"),
        (b"a: b: c\n", "1:5: not YAML: mapping values are not allowed in this context; quote the text"),
        (b"a: `x`\n",
         "1:4: not YAML: found character that cannot start any token; quote the text"),
        (b"a: 'x\nb: 1\n", "1:4: not YAML: this quote or bracket is never closed; close it"),
        (b"a: *x\n", "1:4: not YAML: found undefined alias"),
        (b"a: " + b"[" * 100_000, "1:53: nested deeper than 50 levels; suites are flat"),
        (b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [*a%d]\n" % (i, i, i - 1) for i in range(1, 2000)),
         "51:6: nested deeper than 50 levels; suites are flat"),
        (b"a: " + b"x" * 5_000_000, "1:1: longer than 5 MB; split the suite into several files"),
        (b"a: &a [x, x, x, x, x, x, x, x, x]\n"
         + b"".join(b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghi"),
         "5:4: its aliases add up to far more than is written; write fewer of them"),
        (b"a: &a {" + b", ".join(b"k%d: 1" % i for i in range(1000)) + b"}\n"
         + b"".join(b"b%d: {<<: *a}\n" % i for i in range(1000)),
         "202:7: merge keys add up to far more than is written; write fewer of them"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_no_suite_at_all_is_refused_at_once(tmp_path: Path, raw: bytes, problem: str) -> None:
    path = written(tmp_path, raw)
    start = time.process_time()
    assert problems(path) == [problem]
    assert time.process_time() - start < 1


def test_every_mistake_of_a_file_is_told_with_its_line_and_a_caret(tmp_path: Path) -> None:
    text = changed("some/path", "{path: x, revison: a}").replace("[plain]", "[plian]") + "suite: again\n"
    path = written(tmp_path, text)
    with pytest.raises(SuiteError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    assert str(caught.value).splitlines() == [
        f"{path}:2:26: error: models.tiny.revison: unknown key; did you mean 'revision'?",
        "    | models: {tiny: {path: x, revison: a}}",
        "    |                          ^",
        f"{path}:9:15: error: tests.0.prompts.0: no prompt is called 'plian'; did you mean 'plain'?",
        "    |     prompts: [plian]",
        "    |               ^",
        f"{path}:11:1: error: suite: duplicate key, first used on line 1; keep one of them",
        "    | suite: again",
        "    | ^",
    ]


def test_a_mistake_behind_an_anchor_is_told_once_where_it_is_written(tmp_path: Path) -> None:
    text = changed("{tiny: some/path}", "{tiny: &t {path: x, dtpe: auto}, a: {<<: *t}, b: *t}")
    assert problems(written(tmp_path, text)) == ["2:29: models.tiny.dtpe: unknown key; did you mean 'dtype'?"]


def test_braces_that_are_no_columns_are_fine(tmp_path: Path) -> None:
    text = changed('"1, 2,"', '"def f(): return {x}"').replace("[plain]", "[plain, ask]")
    text = text.replace("stops_at_eos: true", "regex: 'a{2}', json_schema: {pattern: '{x}'}")
    assert load(written(tmp_path, text)).suite.prompts["plain"].text == "def f(): return {x}"


def test_a_file_is_laid_over_the_one_it_extends(tmp_path: Path) -> None:
    base = written(tmp_path, SUITE + "  - {name: second, prompts: [plain], expect: {contains: x}}\n", "base.yaml")
    (tmp_path / "sub").mkdir()
    path = written(
        tmp_path / "sub",
        "suite: over\nextends: ../base.yaml\n"
        "models: {tiny: {dtype: float32}}\ngeneration: {warm: {temperature: 0.9}}\n"
        "prompts: {ask: What?}\nbatch_size: 4\n"
        "tests:\n  - {name: third, prompts: [ask], expect: {contains: y}}\n"
        "  - {name: second, prompts: [ask], expect: {contains: z}}\n",
    )
    loaded = load(path)
    suite = loaded.suite
    assert (suite.suite, suite.batch_size, suite.prompts["ask"].text) == ("over", 4, "What?")
    assert (suite.models["tiny"].path, suite.models["tiny"].dtype) == ("some/path", "float32")
    assert (suite.generation["warm"].do_sample, suite.generation["warm"].temperature) == (True, 0.9)
    assert [(test.name, test.prompts[0]) for test in suite.tests] == [
        ("first", "plain"),
        ("second", "ask"),
        ("third", "ask"),
    ]
    assert loaded.lines == {"first": 8, "second": 9, "third": 8}
    assert loaded.files == {"first": str(base)}
    assert [os.path.realpath(file) for file in loaded.reads] == [os.path.realpath(base)]


def test_what_else_a_suite_is_made_of_is_known(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("words")
    scored = "  - {name: NAME, prompts: [plain], expect: {metric: {name: ./mine.py, min: 1}}}\n"
    text = SUITE + scored.replace("NAME", "scored") + scored.replace("NAME", "scored-again")
    loaded = load(written(tmp_path, text + "compare: {texts: {some: {file: some.txt}}}\n"))
    assert loaded.reads == (str(tmp_path / "some.txt"), str(tmp_path / "mine.py"))
    assert load(written(tmp_path, SUITE)).reads == ()


def test_mistakes_point_into_the_extended_file(tmp_path: Path) -> None:
    base = written(tmp_path, changed("some/path", "{path: x, revison: a}"), "base.yaml")
    path = written(tmp_path, "suite: over\nextends: base.yaml\nbatch_size: 0\n")
    with pytest.raises(SuiteError) as caught:
        load(path)
    assert [(one.file, one.line) for one in caught.value.problems] == [(str(base), 2), (str(path), 3)]


def test_a_broken_extended_file_is_told_with_the_mistakes_of_this_one(tmp_path: Path) -> None:
    base = written(tmp_path, "a: 'x", "base.yaml")
    path = written(tmp_path, "suite: over\nsuite: again\nextends: base.yaml\n")
    with pytest.raises(SuiteError) as caught:
        load(path)
    assert [(one.file, one.line) for one in caught.value.problems] == [(str(base), 1), (str(path), 2)]


def test_extending_in_a_circle_is_refused_with_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "suite: a\nextends: b.yaml\n", "a.yaml")
    written(tmp_path, "suite: b\nextends: ./a.yaml\n", "b.yaml")
    with pytest.raises(SuiteError, match=r"^b\.yaml:2:10: error: extends: goes round in a circle: a.yaml -> b.yaml ->"):
        load("a.yaml")


def test_a_missing_extended_file_is_told_at_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, "suite: a\nextends: b.yaml\n")
    assert problems(path.relative_to(tmp_path)) == [
        "2:10: extends: no such file: b.yaml; the path is relative to this file"
    ]


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file: .*\n  Name a suite file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match=r"no such file or folder: .*\n  Name a suite file"):
        load_all([tmp_path / "none"])


def names(loaded: list[Loaded]) -> list[str]:
    return [one.suite.suite for one in loaded]


def test_a_folder_means_its_suites_in_order(tmp_path: Path) -> None:
    written(tmp_path, changed("small", "b"), "2.yml")
    written(tmp_path, changed("small", "a"), "1.yaml")
    written(tmp_path, "models: {m: x}\n", "part-to-extend.yaml")
    written(tmp_path, "kind: Service\n---\nkind: Pod\n", "other-tool.yaml")
    written(tmp_path, "{}", "suite.schema.json")
    (tmp_path / "folder.yaml").mkdir()
    assert names(load_all([tmp_path])) == ["a", "b"]
    assert names(load_all([tmp_path / "2.yml", tmp_path])) == ["b", "a"]


def test_a_file_named_explicitly_must_be_a_suite(tmp_path: Path) -> None:
    part = written(tmp_path, "models: {m: x}\n", "part.yaml")
    with pytest.raises(SuiteError, match="suite: missing"):
        load_all([part])


def test_a_misspelt_suite_key_does_not_hide_a_file_of_a_folder(tmp_path: Path) -> None:
    written(tmp_path, changed("suite:", "siute:"))
    with pytest.raises(SuiteError, match="siute: unknown key; did you mean 'suite'"):
        load_all([tmp_path])


def test_a_folder_without_suites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no suite in"):
        load_all([tmp_path])


def test_the_mistakes_of_all_files_are_told_together(tmp_path: Path) -> None:
    written(tmp_path, changed("[plain]", "[x]"), "1.yaml")
    written(tmp_path, "suite: 'x", "2.yaml")
    written(tmp_path, SUITE, "3.yaml")
    written(tmp_path, SUITE, "4.yaml")
    with pytest.raises(SuiteError) as caught:
        load_all([tmp_path])
    found = [(Path(one.file).name, one.line, one.message) for one in caught.value.problems]
    assert [one[:2] for one in found] == [("1.yaml", 9), ("2.yaml", 1), ("4.yaml", 1)]
    assert found[2][2] == f"suite: 'small' is already the name of the suite in {tmp_path / '3.yaml'}"


def test_five_thousand_tests_load_in_seconds(tmp_path: Path) -> None:
    one = (
        "  - name: {}\n    description: It stops.\n    prompts: [plain, ask]\n    expect:\n      stops_at_eos: true\n"
        "      new_tokens: {{min: 3, max: 40}}\n      contains: '{{country}}'\n"
        "    xfail: [{{quantization: nf4, reason: it rambles}}]\n"
    )
    path = written(tmp_path, SUITE + "".join(one.format(f"test-{number}") for number in range(5000)))
    seconds = []
    for _ in range(2):
        start = time.process_time()
        assert len(load(path).suite.tests) == 5001
        seconds.append(time.process_time() - start)
    assert min(seconds) < 3


def test_loading_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, harness.load; harness.load.load(sys.argv[1]);"
        "print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    )
    path = written(tmp_path, SUITE)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
