import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import parse_qs

from harness.comparison.measured import Candidate
from harness.inputs import GREEDY, Model
from harness.record import Batch, Completion, Record, Request, Target, TargetFacts, Text, Verdict
from harness.reports.html import page_style, render
from harness.reports.since import since
from harness.store import Results

VOID = {"meta", "br", "img", "input", "link", "hr"}
EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre></style></title><iframe src=//evil>",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred\x1b]8;;http://evil\x07 \x00 \u202e\u2066 \ud800",
)


class Page(HTMLParser):
    """The elements, ids and text of a page; refuses tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts, self.raw = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            self.raw.append(data)
        elif self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def data(self):
        """What the script of the page works with."""
        _, table, _, words, tokens = self.raw
        table = json.loads(table)
        table["words"] |= json.loads(words)
        return {"table": table} | json.loads(tokens)

    def column(self, name):
        """What the table says in each of its rows."""
        column = self.data["table"]["words"][name]
        rows = range(self.data["table"]["count"])
        return [column["values"][column["codes"][row] if column["codes"] else 0] for row in rows]

    def having(self, tag, **attributes):
        return [found for kind, found in self.elements if kind == tag and attributes.items() <= found.items()]


def record(prompt="a", outcome="passed", **changes):
    status = {"xfailed": "failed", "xpassed": "passed"}.get(outcome, outcome)
    target = changes.get("target", "tiny")
    return Record(
        **{
            "check": f"suites/basics.yaml::{target}::stops[{prompt}]",
            "suite": "basics",
            "file": "suites/basics.yaml",
            "line": 3,
            "test": "stops",
            "target": target,
            "model": "m",
            "quantization": "none",
            "prompt": prompt,
            "generation": "greedy",
            "expectation": "finish",
            "verdict": Verdict(status, f"it {outcome}"),
            "xfail": "known since 4.57" if outcome.startswith("x") else "",
            **changes,
        }
    )


def completion(text, request=None, **changes):
    request = request or Request(Text("Say hello"), GREEDY)
    return Completion(request, "Say hello", (1,), (2, 3), ("b", "c"), text, "eos", **changes)


def results(*records, **changes):
    return Results(
        **{
            "records": records,
            "completions": (),
            "failures": (),
            "facts": (),
            "counts": {"asked": 40, "distinct": 22, "generated": 22},
            "suites": ({"name": "basics", "file": "suites/basics.yaml", "sha256": "ab12" * 16},),
            "started": "2025-01-01T00:00:00+00:00",
            "seconds": 31.2,
            "environment": {"python": "3.11.7", "libraries": {"torch": "2.13.0"}},
            "command": "harness run suites/basics.yaml",
            **changes,
        }
    )


def test_the_page_loads_nothing_and_runs_only_its_own_script():
    page = Page(render(results(record(), record("b", "failed"))))
    (policy,) = page.having("meta", **{"http-equiv": "Content-Security-Policy"})
    data = "application/json"
    assert [found.get("type") for found in page.having("script")] == [data, None, data, data]
    style, _, script, _, _ = page.raw
    assert policy["content"] == (
        f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert script.startswith('"use strict"')
    acts_by_itself(page)


def digest(text):
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def acts_by_itself(page):
    """Nothing is loaded, nothing acts but the one script, no link leads out."""
    assert {tag for tag, _ in page.elements}.isdisjoint({"img", "link", "iframe", "form", "use", "image", "object"})
    assert not [name for _, found in page.elements for name in found if name in ("src", "style") or name[:2] == "on"]
    assert all(link["href"].startswith("#") for link in page.having("a"))


def test_the_verdict_comes_first_then_what_failed():
    verdict = Verdict("failed", "differs at token 3", {}, ("expected: a", "got:      b"))
    page = Page(render(results(record(), record("b", "failed", verdict=verdict))))
    text = page.text
    assert text.strip().startswith("FAILED – basics FAILED – basics 1 of 2 checks failed in 31 s")
    text = text[text.index("What failed") :]
    order = ["What failed", "differs at token 3", "Passed of judged", "All results", "Targets:", "python 3.11.7"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "expected: a got: b" in text
    assert 'pytest "suites/basics.yaml::tiny::stops[b]"' in text
    assert "requests: asked 40, distinct 22, generated 22" in page.text


def test_outcomes_are_told_by_symbol_word_and_number():
    records = [record(str(i), outcome) for i, outcome in enumerate(["failed", "error", "passed", "xfailed", "skipped"])]
    page = Page(render(results(*records)))
    assert "✗!x– 1/4" in page.text
    assert "1 failed, 1 error, 1 xfailed, 1 passed, 1 skipped" in page.text
    for told in ("✗ failed", "! error", "✓ passed", "x xfailed", "– skipped"):
        assert told in page.text


def test_targets_stand_side_by_side_and_differences_have_a_sign():
    targets = (
        Target("tiny", "m", Model(path="p", dtype="float16")),
        Target("other", "m", Model(path="p", attention="eager")),
    )
    facts = (TargetFacts("tiny", "cpu", "bfloat16", "sdpa"), TargetFacts("other", "cpu", "bfloat16", "eager"))
    page = Page(render(results(record(), facts=facts, targets=targets)))
    assert "dtype float16 → bfloat16 bfloat16" in page.text
    assert "attention ≠ differs sdpa ≠ differs: eager" in page.text
    assert "device cpu on all" in page.text
    assert len(page.having("td", **{"class": "other"})) == 1


def test_texts_stand_side_by_side_by_prompt():
    again = Request(Text("Say hello"), GREEDY, layout=Batch((Text("Say hello"), Text("x")), "right"), repeat=1)
    outcome = results(
        record(prompt="greeting", requests=(Request(Text("Say hello"), GREEDY).id,)),
        record(prompt="", requests=(again.id,)),
        completions=(
            ("tiny", completion("Hello\n  there")),
            ("tiny-nf4", completion("Hallo")),
            ("tiny", completion("Hello!", again)),
        ),
    )
    page = Page(render(outcome))
    start = page.text.index("Generated texts")
    text = page.text[start : page.text.index("python 3.11.7")]
    assert "prompt tiny tiny-nf4 greeting Say hello Hello there 2 tokens, eos Hallo 2 tokens, eos" in text
    assert "(in a batch of 2, padding right, repeat 1) Say hello Hello! 2 tokens, eos –" in text
    assert "Hello\n  there" in page.texts


def test_nothing_a_model_wrote_becomes_part_of_the_page():
    calm = Page(render(everywhere("calm")))
    for evil in EVIL:
        html = render(everywhere(evil))
        html.encode("utf-8")
        page = Page(html)
        assert [tag for tag, _ in page.elements] == [tag for tag, _ in calm.elements]
        assert [sorted(found) for _, found in page.elements] == [sorted(found) for _, found in calm.elements]
        assert not set(html) & set("\x1b\x07\x00\u202e\u2066\ud800")
        assert page.raw[::2][:2] == calm.raw[::2][:2]
        assert not set("".join(strings(page.data))) & set("\x1b\x07\x00\u202e\u2066\ud800")
    assert "\\x1b[31mred" in html
    assert page.column("text")[0].startswith("\\x1b[31mred")
    assert "{{ 7 * 7 }}" in Page(render(everywhere("{{ 7 * 7 }}"))).text


def strings(value):
    """All texts of the data, those that are keys, too."""
    if isinstance(value, dict):
        yield from (text for key, item in value.items() for text in (key, *strings(item)))
    elif isinstance(value, list):
        yield from (text for item in value for text in strings(item))
    elif isinstance(value, str):
        yield value


def everywhere(text):
    """Results with this text wherever a text can stand."""
    names = {name: text for name in ("check", "suite", "file", "test", "target", "model", "quantization", "prompt")}
    verdict = Verdict("failed", text, {"text": text}, (text,))
    request = Request(Text(text), GREEDY)
    bad = record(**names, generation=text, expectation=text, verdict=verdict, text=text, finish=text)
    known = record("b", "xfailed", xfail=text, requests=(request.id,))
    return results(
        bad,
        known,
        completions=((text, completion(text, request, warnings={text: 2})),),
        facts=(TargetFacts(text, text, text, text, weights=text, padding_side=text, modules={text: 1}),),
        suites=({"name": text, "file": text, "sha256": text},),
        environment={text: text, "libraries": {text: text}},
        command=text,
        errors=(f"{text} not loaded",),
    )


def test_a_huge_text_is_cut_with_a_word_on_the_rest():
    long = "<b>" + "x" * 1_000_000
    verdict = Verdict("failed", long, {}, (long,))
    done = completion(long)
    failed = record("b", "failed", text=long, verdict=verdict, requests=(done.request.id,))
    outcome = results(failed, completions=(("tiny", done),))
    page = Page(render(outcome))
    assert len(render(outcome)) < 120_000
    assert "… and 996,003 more characters; all of it in tokens.parquet" in page.text
    assert "… and 996,003 more characters; all of it in results.parquet" in page.text
    assert page.column("text")[0].endswith("… and 996,003 more characters; all of it in results.parquet")


def test_a_page_of_very_many_verdicts_holds_those_that_did_not_pass():
    records = [record(str(number)) for number in range(20_000)] + [record("last", "failed"), record("known", "xfailed")]
    page = Page(render(results(*records)))
    assert page.column("prompt") == ["last", "known"]
    assert page.data["table"]["total"] == 20_002
    assert "20,002 verdicts are too many for a page: here are the 2 that did not pass; all of them are in" in page.text
    assert "20,000" in page.text  # passed, in the header
    passed = Page(render(results(*records[:-2], record("one more"))))
    assert "20,001 verdicts are too many for a page: all of them passed, and are in results.parquet." in passed.text
    assert passed.data["table"]["count"] == 0
    few = Page(render(results(record(), record("b", "failed"))))
    assert "too many" not in few.text


def test_failures_of_one_test_are_told_once_and_the_others_named():
    records = [
        record("a", "failed", target="int8", check="A"),
        record("b", "failed", target="nf4", check="B", verdict=Verdict("failed", "another\nreason")),
        record("c", "failed", target="nf4", check="C"),
        record("d", "failed", test="other"),
    ]
    page = Page(render(results(*records)))
    assert len(page.having("article")) == 2
    assert "and 2 more of the same test: nf4 2" in page.text
    assert "B another\\nreason C it failed all 3 in the table" in page.text
    links = [parse_qs(link["href"][1:]) for link in page.having("a")]
    assert {"outcome": ["failed"], "row": ["B|finish"]} in links
    assert {"outcome": ["failed"], "test": ["stops"], "expectation": ["finish"]} in links


def test_very_many_failures_are_counted_and_not_all_told():
    records = [record("a", "failed", test=f"t{number}") for number in range(130)]
    page = Page(render(results(*records)))
    assert len(page.having("article")) == 100
    assert "… and 30 more in the table of all results" in page.text
    alike = Page(render(results(*[record(str(number), "failed") for number in range(50)])))
    assert len([link for link in alike.having("a") if "row=" in link["href"]]) == 21  # one in full, 20 by name
    assert "all 50 in the table" in alike.text


def test_cells_of_the_matrix_lead_to_their_rows_and_are_darker_the_more_failed():
    records = [
        record("a", "failed", target="bad & co"),
        record("a", target="good"),
        record("b", "failed", target="good"),
        record("c", target="good"),
        record("d", target="good"),
        record("a", test="fine", target="good"),
    ]
    page = Page(render(results(*records)))
    cells = [found["class"] for found in page.having("td") if found.get("class", "").startswith("shade")]
    assert cells == ["shade-4", "shade-2", "shade-0", "shade-0"]
    links = [parse_qs(link["href"][1:]) for link in page.having("a")]
    assert {"test": ["stops"], "target": ["bad & co"]} in links


def test_each_failure_says_how_to_reproduce_it_and_has_a_button_that_copies_it():
    verdict = Verdict("failed", "no", {}, ("repro   python repros/a.py", "repro   none: too large"))
    page = Page(render(results(record("b", "failed", verdict=verdict))))
    assert 'pytest "suites/basics.yaml::tiny::stops[b]" copy' in page.text
    assert " python repros/a.py copy" in page.text
    assert len(page.having("button", **{"class": "copy"})) == 2


def test_a_run_that_is_not_whole_says_so_on_top():
    stopped = Page(render(results(record(), complete=False))).text
    assert "! incomplete the run was stopped before the end" in stopped
    damaged = Page(render(results(record(), lacks=("tokens.parquet is missing",)))).text
    assert "! incomplete tokens.parquet is missing" in damaged
    assert "! incomplete" not in Page(render(results(record()))).text


def test_without_script_the_page_says_what_is_missing():
    text = Page(render(results(record(), record("b", "failed")))).text
    assert "The table of 2 verdicts needs JavaScript; they are in results.parquet, too." in text


def test_sections_are_named_and_the_navigation_leads_to_each():
    page = Page(render(results(record("b", "failed"))))
    sections = page.having("section")
    ids = {found["id"] for _, found in page.elements if "id" in found}
    assert {found["aria-labelledby"] for found in sections} <= ids
    led = {link["href"][1:] for link in page.having("a") if "=" not in link["href"]}
    assert led == {found["id"] for found in sections}


def test_tokens_of_what_did_not_pass_are_in_the_page():
    done = completion("bc", Request(Text("x"), GREEDY))
    failed = record("b", "failed", requests=(done.request.id,))
    page = Page(render(results(failed, completions=(("tiny", done),))))
    view = page.data["views"][failed.check]
    assert [token[0] for token in view["sides"][0]["tokens"]] == ["b", "c"]
    assert page.data["texts"]["tiny"]["2"] == "b"


def test_an_error_shared_by_many_checks_is_told_once():
    verdict = Verdict("error", "no such model")
    records = [record(str(number), "error", verdict=verdict) for number in range(3)]
    page = Page(render(results(*records, errors=("tiny: no such model", "other: out of memory"))))
    assert len(page.having("article")) == 1
    assert "and 2 more of the same reason: tiny 2" in page.text
    loading = page.text[page.text.index("Could not be loaded") : page.text.index("What failed")]
    assert "other: out of memory" in loading
    assert "tiny" not in loading


def test_the_page_can_be_read_by_ear_and_by_keyboard():
    page = Page(render(results(record("b", "failed", verdict=Verdict("failed", "no", {}, ("detail",))))))
    assert page.having("html", lang="en")
    assert page.having("title")
    assert page.having("meta", name="viewport")
    assert all("scope" in found for found in page.having("th"))
    assert all("tabindex" in found and "aria-label" in found for found in page.having("div", **{"class": "scroll"}))
    assert page.having("pre", tabindex="0")


def channels(colour):
    wide = "".join(digit * 2 for digit in colour) if len(colour) == 3 else colour
    return [int(wide[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def luminance(parts):
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def mixed(one, other, share):
    return [share * a + (1 - share) * b for a, b in zip(one, other, strict=True)]


def test_every_colour_of_text_is_readable_in_light_and_dark():
    style = page_style()
    (rule,) = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    pairs = re.findall(r"--(\w+): light-dark\(#([0-9a-f]+), #([0-9a-f]+)\)", rule)
    deepest = max(
        int(found) for found in re.findall(r"shade-\d \{ background: color-mix\(in srgb, var\(--heat\) (\d+)%", style)
    )
    for scheme in (1, 2):
        colours = {pair[0]: channels(pair[scheme]) for pair in pairs}
        chosen = mixed(colours["heat"], colours["paper"], 0.18)  # the row that is open
        for name in ("ink", "soft", "good", "bad", "odd", "known", "link"):
            for ground in (colours["paper"], colours["panel"], chosen):
                assert contrast(colours[name], ground) >= 4.5, (name, scheme)
        assert contrast(colours["ink"], mixed(colours["heat"], colours["paper"], deepest / 100)) >= 4.5


def test_a_run_of_nothing_is_a_page_too():
    text = Page(render(results(suites=(), environment={}, counts={}))).text
    assert "EMPTY – run" in text
    assert "no checks were judged" in text


def test_warnings_and_environment_are_told():
    facts = TargetFacts("tiny", warnings={"MatMul8bitLt: inputs will be cast": 12_600})
    text = Page(render(results(record(), facts=(facts,)))).text
    assert "12,600 × MatMul8bitLt: inputs will be cast" in text
    assert "torch 2.13.0" in text
    assert "suites/basics.yaml sha256 ab12ab12ab12" in text


def test_a_comparison_opens_with_the_decision(compared):
    page = Page(render(compared()))
    assert re.match(r" ship int8: .* – levels ship int8: .* – levels checks: FAILED 1 of 3 checks failed", page.text)
    text = page.text[page.text.index("Environment") :]  # after the navigation
    order = ("Decision", "do not ship", "Candidates against the baseline", "What failed", "All results", "Pareto set:")
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "baseline fp32; 8 prompts, 32 tokens of its own continuations" in page.text
    assert (
        "✗ do not ship fp32 (baseline) peak_mb 600 MB, at most 400 wanted ✓ ship int8 ✗ do not ship nf4 kl" in page.text
    )
    assert "must_pass counts[p0]: failed ? cannot tell fp8 it was not measured" in page.text
    assert page.text.count("needs a GPU") == 1
    assert "Notes nf4: a note" in page.text
    assert "nf4 1 failed of 1 check" in page.text


def test_the_statistics_say_better_and_worse_in_words(compared):
    text = Page(render(compared())).text
    assert "weights, MB 538 162 ▲ better 110 ▲ better peak memory, MB" in text
    assert "tokens/s, batch 31 [30, 32] 22 [20, 23] ▼ worse 36 [33, 40] ▲ better" in text
    assert "first token, ms 12 [10, 20] 12 [10, 20] 12 [10, 20] tokens/s" in text
    assert re.search(r"KL, mean nats a token 0 0\.0200 \[[^]]*\] ▼ worse 0\.300 \[[^]]*\] ▼ worse KL, median", text)
    assert "peak, loading, MB – – – loading" in text


def test_charts_have_a_text_for_those_who_do_not_see_them(compared):
    page = Page(render(compared()))
    charts = page.having("svg", role="img")
    assert any("int8" in chart["aria-label"] and "300 MB" in chart["aria-label"] for chart in charts)
    assert all(chart["aria-label"] for chart in charts)
    assert "Every two candidates, on the same prompts (2) int8 better than nf4 in KL by 0.280" in page.text


def test_a_comparison_without_a_budget_says_how_to_get_a_decision(compared):
    text = Page(render(compared(budget=None))).text
    assert "write into the suite what a target may cost: budget: max_kl: 0.1" in text
    assert "do not ship" not in text


def test_a_comparison_without_speed_has_no_chart_of_it(compared, measures):
    page = Page(render(compared(measured=measures(timings=()))))
    assert not [chart for chart in page.having("svg") if "tokens/s" in chart["aria-label"]]
    assert "Pareto set: not known" in page.text


def test_only_what_a_check_or_a_comparison_asked_for_is_a_text(compared):
    def text_of(what, **changes):
        return "fp32", completion(f"only {what}", Request(Text(what), GREEDY, **changes))

    plain = compared()
    others = (text_of("replay", kind="replay"), text_of("likelihood", kind="likelihood"), text_of("speed", repeat=3))
    text = Page(render(compared(completions=(*plain.completions, *others)))).text
    assert "only" not in text[text.index("Generated texts") : text.index("All results")]
    # p7 was asked for by the comparison, and by no check
    assert "p7 Say p7 one two 4 tokens, eos one two 4 tokens, eos one three 4 tokens, eos" in text


def test_nothing_foreign_in_a_comparison_becomes_part_of_the_page(compared, measures):
    def made(text):
        named = measures()
        candidates = tuple(Candidate(text, "int8", text) if one.name == "int8" else one for one in named.candidates)
        return render(
            compared(
                measured=measures(candidates=candidates, not_measured={"fp8": text}, notes=(text,)),
                errors=(text,),
            )
        )

    calm = Page(made("calm"))
    for evil in EVIL:
        page = Page(made(evil))
        assert [tag for tag, _ in page.elements] == [tag for tag, _ in calm.elements]
        assert [sorted(found) for _, found in page.elements] == [sorted(found) for _, found in calm.elements]
        assert not set(made(evil)) & set("\x1b\x07\x00\u202e\u2066\ud800")


def test_a_comparison_keeps_the_rules_of_the_page(compared):
    page = Page(render(compared()))
    acts_by_itself(page)
    assert all("scope" in found for found in page.having("th"))
    assert all("tabindex" in found and "aria-label" in found for found in page.having("div", **{"class": "scroll"}))


def test_a_comparison_leads_to_the_tokens_at_which_candidates_part(compared):
    page = Page(render(compared()))
    assert "Where candidates part from the baseline" in page.text
    links = [parse_qs(link["href"][1:]) for link in page.having("a")]
    keys = [link["row"][0] for link in links if link.get("row", [""])[0].startswith("compare::")]
    assert keys
    assert set(keys) <= set(page.data["views"])
    assert {"compare::nf4::p0"} <= set(keys)


# --- against an earlier run ---------------------------------------------------------------------------------------


def runs(**changes):
    before = results(record("a"), record("b", "failed"), record("c"))
    after = results(record("a", "failed"), record("b"), record("c"))
    return before, replace(after, **changes)


def test_what_got_worse_comes_first_and_leads_to_its_row():
    before, after = runs(environment={"libraries": {"torch": "9.9"}})
    page = Page(render(after, before))
    order = [
        "WORSE 1 check regressed, 1 check fixed",
        "regressed",
        "fixed",
        "What else changed",
        "torch",
        "9.9",
        "What failed",
    ]
    places = [page.text.index(words) for words in order]
    assert places == sorted(places)
    assert page.having("section", id="since")
    assert page.having("a", href="#since")
    links = [parse_qs(link["href"][1:]) for link in page.having("a")]
    assert {"outcome": ["failed"], "row": [f"{after.records[0].check}|{after.records[0].expectation}"]} in links


def test_the_same_run_again_is_said_to_be_the_same():
    before, _ = runs()
    found = since(before, before)
    assert (found["word"], found["look"]) == ("SAME", "passed")
    assert not any(kind["pairs"] for kind in found["kinds"])
    assert since(before, None) is None


def test_what_two_runs_say_is_shown_and_acts_nowhere():
    before, after = runs()
    evil = "".join(EVIL)
    bad = replace(after.records[0], check=evil, verdict=replace(after.records[0].verdict, reason=evil))
    good = replace(before.records[0], check=evil)
    text = render(replace(after, records=(bad,), command=evil), replace(before, records=(good,)))
    page = Page(text)
    assert "<script>alert(1)</script>" in page.text
    assert len(page.having("script")) == 4
    assert not page.having("iframe")
    assert not page.having("img")
