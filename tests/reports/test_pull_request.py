"""What a pull request shows: markdown that nothing a model wrote can change, and annotations on the right lines."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from harness.errors import UsageError
from harness.record import Verdict
from harness.reports.pull_request import (
    COMMENT,
    STEP_SUMMARY,
    annotations,
    code,
    repository_path,
    summary_md,
    tell_github,
    without_commands,
)

EVIL = (
    "</pre></code></details><script>alert(1)</script> a | b **c** _d_ `e` ```\n\n# f\n| g |\n- ![h](http://i/j.png) "
    "[k](l) <m@n.de> www.o.de @user #12 :smile: $x$ ~~p~~ &lt; \x1b[31m \u202e \ud800 \x00 <!-- \\"
)
SHOWN = ("p", "ul", "li", "code", "span", "pre", "details", "summary", "h2", "h3", "strong")
TABLE = ("table", "thead", "tbody", "tr", "th", "td")


class Page(HTMLParser):
    """What a browser makes of it: tags, and what is said in code and outside of it."""

    def __init__(self, markdown):
        super().__init__()
        self.tags, self.open, self.coded, self.plain, self.wrong = [], [], [], [], []
        self.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        if attrs and (tag, attrs) != ("details", [("open", None)]):
            self.wrong.append((tag, attrs))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_comment(self, data):
        self.wrong.append(data)

    def handle_data(self, data):
        (self.coded if {"code", "pre"} & {*self.open} else self.plain).append(data)


def failed(results, place=0, **changes):
    """With one of its records failed."""
    records = list(results.records)
    records[place] = replace(records[place], **({"verdict": Verdict("failed", "it is wrong")} | changes))
    return replace(results, records=tuple(records))


@pytest.fixture
def plain(compared):
    """plain(**changes): results without a comparison, whose figures take a while."""
    return lambda **changes: compared(**({"measured": None, "errors": ()} | changes))


def many(results, count, text="no", **changes):
    one = results.records[2]
    verdict = Verdict("failed", text, {}, (text,) * 3)
    records = tuple(
        replace(one, check=f"s.yaml::nf4::t{i}[p]", test=f"t{i}", line=i + 1, verdict=verdict, **changes)
        for i in range(count)
    )
    return replace(results, records=records)


def test_it_begins_with_the_verdict_and_tells_failures_before_the_matrix(compared):
    text = summary_md(compared())
    assert text.startswith("## ✗ FAILED: 1 of 3 checks failed, 1 target not loaded in 31 s\n")
    places = [text.index(title) for title in ("not loaded", "### Failures", "### Tests × targets", "### Decision")]
    assert places == sorted(places)
    page = Page(text)
    assert not page.wrong
    assert "pytest \"suites/levels.yaml::nf4::counts[p0]\"" in page.coded  # fmt: skip
    assert "suites/levels.yaml:3" in page.coded
    assert "| <code>counts</code> | ✓ 1/1 | ✓ 1/1 | ✗ 0/1 |" in text


def test_all_well_is_said_in_a_word_and_has_no_failures(plain):
    text = summary_md(plain(records=plain().records[:2]))
    assert text.startswith("## ✓ PASSED: 2 of 2 checks passed")
    assert "Failures" not in text
    assert "Decision" not in text


def test_the_decision_is_told_with_its_figures_and_reasons(compared):
    text = summary_md(compared())
    assert "**<code>ship int8&#58; it alone keeps the budget</code>**" in text
    assert "| gate | ✗ do not ship | ✓ ship | ✗ do not ship |" in text
    assert "| weights, MB | 538 | 162 ▲ | 110 ▲ |" in text
    assert "peak_mb 600 MB, at most 400 wanted" in Page(text).coded


def test_regressions_come_first_and_are_not_told_twice(plain):
    before = plain(environment={"libraries": {"torch": "2.12"}})
    after = failed(plain(environment={"libraries": {"torch": "2.13"}}), 1)
    text = summary_md(after, before)
    places = [text.index(part) for part in ("### ✗ Regressed", "### Other failures", "### Tests", "### What else")]
    assert places == sorted(places)
    regressed, others = text[places[0] : places[1]], text[places[1] : places[2]]
    assert "1 check regressed since" in regressed
    assert "passed → failed <code>counts&#91;p0&#93;</code> on <code>int8</code>" in regressed
    assert "nf4" not in regressed
    assert "int8" not in others
    assert "| <code>libraries</code> | <code>torch</code> | <code>2.12</code> | <code>2.13</code> |" in text


def test_where_nothing_got_worse_that_is_said(plain):
    text = summary_md(plain(), plain())
    assert "no check changed since" in text
    assert "Regressed" not in text
    assert "### Failures" in text


def test_what_was_fixed_is_counted(plain):
    assert "1 check fixed since" in summary_md(plain(), failed(plain(), 1))


def test_runs_of_nothing_in_common_are_refused(plain):
    other = plain(completions=())
    with pytest.raises(UsageError, match="no verdict and no generation in common"):
        summary_md(plain(), replace(other, records=tuple(replace(one, suite="x") for one in other.records)))


def test_nothing_that_a_model_wrote_becomes_markup_or_a_mention(compared):
    bad = failed(
        compared(environment={"libraries": {"torch": EVIL}}),
        2,
        verdict=Verdict("failed", EVIL, {}, (EVIL,)),
        expectation=EVIL,
        check=f"s.yaml::nf4::{EVIL}",
        test=EVIL,
    )
    bad = failed(bad, 1, verdict=Verdict("passed", ""), xfail=EVIL)
    bad = replace(bad, errors=(EVIL,), command=EVIL, complete=False, lacks=(EVIL,))
    for text in (summary_md(bad), summary_md(bad, compared(environment={"libraries": {"torch": "1"}}))):
        page = Page(text)
        assert not page.wrong
        assert not page.open
        assert {*page.tags} <= {*SHOWN, *TABLE}
        plain = "".join(page.plain)
        assert not re.search(r"[@#$`<]|alert|smile|www", plain)
        coded = "".join(page.coded)
        for part in (
            "<script>alert(1)</script>",
            "www.o.de",
            "@user",
            "#12",
            "\\x1b[31m",
            "\\u202e",
            "\\ud800",
            "&lt;",
        ):
            assert part in coded
        assert text.encode("utf-8")
        assert text.isprintable() or not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)


@pytest.mark.parametrize("character", [chr(code) for code in range(0x20, 0x7F)])
def test_code_shows_every_character_as_it_is_in_a_cell_and_in_a_line(character):
    text = f"{character}{character}a{character} b"
    for markdown in (code(text), f"| {code(text)} |\n| --- |\n| {code(text)} |", f"- {code(text)}"):
        page = Page(markdown)
        assert "".join(page.coded) in (text, text * 2)
        assert {*page.tags} <= {"p", "code", "span", "ul", "li", *TABLE}
        assert character != "@" or "@" in page.coded  # alone, so that it is part of no address


@pytest.mark.parametrize("evil", ["&" * 3000, "\x00" * 3000, "\U0001f600" * 3000, "<" * 20_000, "a b " * 999])
def test_it_fits_into_a_comment_whatever_is_said(compared, evil):
    made = many(compared(), 500, evil, xfail="")
    targets = [replace(one, target=f"{evil[:90]}{i}") for i, one in enumerate(made.records[:40])]
    records = (*made.records, *targets, *(replace(one, verdict=Verdict("passed", ""), xfail=evil) for one in targets))
    bad = replace(
        made,
        records=records,
        errors=(evil,) * 50,
        lacks=(evil,) * 50,
        command=evil,
        environment={f"{i}{evil[:100]}": evil for i in range(100)},
    )
    before = replace(
        bad,
        records=tuple(replace(one, verdict=Verdict("passed", ""), xfail="") for one in records),
        environment={"libraries": {"torch": "1"}},
    )
    for text in (summary_md(bad), summary_md(bad, before)):
        assert len(text) < COMMENT
        assert len(text.encode()) < STEP_SUMMARY / 4
        assert not Page(text).wrong
        assert "more" in text


def test_a_text_of_a_megabyte_is_cut_and_its_place_is_told(plain):
    text = summary_md(failed(plain(), verdict=Verdict("failed", "a" * 1_000_000, {}, ("b" * 1_000_000,))))
    assert len(text) < 5_000
    assert "more characters; all of it in results.parquet" in text
    (line, *_) = annotations(failed(plain(), verdict=Verdict("failed", "a" * 1_000_000)))
    assert len(line) < 2_000


def test_what_does_not_fit_is_counted(plain):
    text = summary_md(many(plain(), 500))
    shown = text.count("<details")
    assert 10 < shown < 500
    assert f"… and {500 - shown} more failures, not shown here" in text
    rows = text.count("| ✗ 0/1 |")
    assert f"… and {500 - rows} more tests, not shown here" in text


def test_tests_that_failed_stand_first_in_the_matrix(plain):
    *others, bad = plain().records
    well = (replace(one, test=f"well{i}", check=f"s::{i}") for i, one in enumerate(others))
    text = summary_md(plain(records=(*well, bad)))
    assert text.index("<code>counts</code> |") < text.index("<code>well0</code> |")


def test_a_run_that_is_not_whole_is_marked(plain):
    why = "the run was stopped before the end&#58; what was not reached is missing"
    assert f"⚠ incomplete: <code>{why}</code>" in summary_md(plain(complete=False))
    assert "⚠ incomplete: <code>only verdicts</code>" in summary_md(plain(lacks=("only verdicts",)))
    assert "incomplete" not in summary_md(plain())


def test_a_known_failure_that_passed_is_told(plain):
    text = summary_md(failed(plain(), 0, verdict=Verdict("passed", ""), xfail="it never knew"))
    assert "X passed unexpectedly: <code>suites/levels.yaml&#58;&#58;fp32" in text
    assert "known as <code>it never knew</code>" in text


# Annotations


def test_an_annotation_points_at_the_line_of_the_test(plain):
    assert annotations(plain()) == [
        "::error file=suites/levels.yaml,line=3,title=counts%3A 1 failed::counts[p0] on nf4 (contains): it failed"
    ]


def test_a_test_that_fails_many_times_has_one_annotation(plain):
    more = tuple(replace(plain().records[2], check=f"s.yaml::nf4::counts[p{i}]") for i in range(5))
    (line,) = annotations(plain(records=more))
    assert "title=counts%3A 5 failed::" in line
    assert line.count("%0A") == 3
    assert line.endswith("%0Aand 2 more of this test")


def test_a_target_that_breaks_everywhere_is_told_once(plain):
    broken = many(plain(), 20)
    records = tuple(replace(one, verdict=Verdict("error", "no weights")) for one in broken.records)
    (line,) = annotations(replace(broken, records=records))
    assert "no weights (and 19 more checks there for the same reason)" in line


def test_a_target_that_was_not_loaded_is_told_on_the_suite(plain):
    assert (
        annotations(plain(errors=("fp8: fp8 needs a GPU",)))[-1]
        == "::error file=suites/levels.yaml,title=not loaded::fp8: fp8 needs a GPU"
    )


def test_there_are_at_most_ten_and_the_rest_is_counted(plain):
    assert len(annotations(many(plain(), 10))) == 10
    lines = annotations(many(plain(), 14))
    assert [line.partition(" ")[0] for line in lines] == ["::error"] * 10 + ["::notice"]
    assert lines[-1].startswith("::notice title=harness::and 4 more tests with failures")


def test_what_regressed_is_annotated_first(plain):
    before, after = many(plain(), 14), many(plain(), 14)
    before = failed(before, 12, verdict=Verdict("passed", ""))
    assert ",line=13," in annotations(after, before)[0]
    assert ",line=1," in annotations(after)[0]


def test_nothing_in_an_annotation_ends_it_early(plain):
    evil = "100%\r\n::set-output name=a::b,c:d\n\x1b[0m\u2028"
    (line,) = annotations(
        failed(
            plain(records=plain().records[2:]),
            verdict=Verdict("failed", evil),
            test=evil,
            file="a,b:c%\n.yaml",
        )
    )
    assert "\n" not in line
    assert "\r" not in line
    command, _, message = line[2:].partition("::")
    kind, _, properties = command.partition(" ")
    parts = dict(part.split("=", 1) for part in properties.split(","))
    assert kind == "error"
    assert list(parts) == ["file", "line", "title"]
    assert parts["file"] == "a%2Cb%3Ac%25%0A.yaml"
    assert "100%25\\r\\n::set-output name=a::b,c:d\\n\\x1b[0m\\u2028" in message


def test_files_are_told_as_the_repository_names_them(tmp_path, monkeypatch):
    suites = tmp_path / "repository" / "models" / "suites"
    suites.mkdir(parents=True)
    (suites / "a.yaml").write_text("")
    (tmp_path / "repository" / ".git").mkdir()
    monkeypatch.chdir(suites.parent)
    assert repository_path("suites/a.yaml", {}) == "models/suites/a.yaml"
    assert repository_path(str(suites / "a.yaml"), {}) == "models/suites/a.yaml"
    assert repository_path("suites/a.yaml", {"GITHUB_WORKSPACE": str(suites.parent)}) == "suites/a.yaml"
    monkeypatch.chdir(suites)
    assert repository_path("../suites/a.yaml", {}) == "models/suites/a.yaml"
    # Under pytest names are relative to the rootdir, which may be above the current folder.
    assert repository_path("models/suites/a.yaml", {}) == "models/suites/a.yaml"
    assert repository_path("gone.yaml", {}) == "models/suites/gone.yaml"
    assert repository_path("/elsewhere/a.yaml", {}) == "/elsewhere/a.yaml"


def test_a_repository_behind_a_link_is_found(tmp_path, monkeypatch):
    (tmp_path / "real" / "suites").mkdir(parents=True)
    (tmp_path / "real" / "suites" / "a.yaml").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real" / "suites")
    assert repository_path("a.yaml", {"GITHUB_WORKSPACE": str(tmp_path / "link")}) == "suites/a.yaml"


# GitHub Actions


def told(results, **environment):
    stream = io.StringIO()
    tell_github(results, stream, environment=environment)
    return stream.getvalue()


def test_elsewhere_than_in_github_actions_nothing_is_told(plain):
    assert told(plain()) == ""
    assert told(plain(), GITHUB_ACTIONS="false", CI="true") == ""


def test_in_github_actions_the_summary_is_added_and_annotations_are_printed(plain, tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    lines = told(plain(), GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(path)).splitlines()
    assert lines == annotations(plain())
    assert path.read_text(encoding="utf-8") == "before\n" + summary_md(plain())


def test_a_summary_that_would_be_too_long_for_github_is_left_out_and_told(plain, tmp_path):
    path = tmp_path / "summary.md"
    path.write_bytes(b"x" * (STEP_SUMMARY - 100))
    said = told(plain(), GITHUB_STEP_SUMMARY=str(path))
    assert said == "::notice::the summary of this step is full: see the report of the run\n"
    assert path.stat().st_size == STEP_SUMMARY - 100


def test_a_summary_that_cannot_be_written_is_no_end_of_the_run(plain, tmp_path):
    said = told(plain(), GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(tmp_path / "gone" / "summary.md"))
    assert said.endswith("::warning::cannot write the summary of this step: No such file or directory\n")


def test_a_console_that_cannot_say_it_is_told_all_the_same(plain):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    tell_github(failed(plain(), 2, verdict=Verdict("failed", "Köln")), stream, environment={"GITHUB_ACTIONS": "true"})
    stream.flush()
    assert b"K\\xf6ln" in stream.buffer.getvalue()


def test_what_is_printed_without_commands_is_none():
    stream = io.StringIO()
    with without_commands(stream, {"GITHUB_ACTIONS": "true"}):
        print("::add-mask::e", file=stream)
    first, middle, last = stream.getvalue().splitlines()
    token = first.removeprefix("::stop-commands::")
    assert len(token) == 32
    assert (middle, last) == ("::add-mask::e", f"::{token}::")
    stream = io.StringIO()
    with without_commands(stream, {}):
        pass
    assert stream.getvalue() == ""


def test_commands_are_on_again_after_an_error():
    stream = io.StringIO()
    with pytest.raises(KeyError), without_commands(stream, {"GITHUB_ACTIONS": "true"}):
        raise KeyError
    assert len(stream.getvalue().splitlines()) == 2
