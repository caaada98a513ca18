import re
from html.parser import HTMLParser

from harness.comparison.measured import Candidate
from harness.inputs import GREEDY, Model
from harness.record import Batch, Completion, Record, Request, Target, TargetFacts, Text, Verdict
from harness.reports.html import render
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
        self.elements, self.open, self.texts = [], [], []
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
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

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


def test_the_page_loads_nothing_and_runs_nothing():
    page = Page(render(results(record(), record("b", "failed"))))
    (policy,) = page.having("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "link", "iframe", "form", "a"})
    assert not [name for _, found in page.elements for name in found if name in ("src", "href", "style")]


def test_the_verdict_comes_first_then_what_failed():
    verdict = Verdict("failed", "differs at token 3", {}, ("expected: a", "got:      b"))
    text = Page(render(results(record(), record("b", "failed", verdict=verdict)))).text
    assert text.strip().startswith("FAILED – basics FAILED – basics 1 of 2 checks failed in 31 s")
    order = ["What failed", "differs at token 3", "Passed of judged", "Targets", "All results", "Environment"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "expected: a got: b" in text
    assert 'pytest "suites/basics.yaml::tiny::stops[b]"' in text
    assert "requests: asked 40, distinct 22, generated 22" in text


def test_outcomes_are_told_by_symbol_word_and_number():
    records = [record(str(i), outcome) for i, outcome in enumerate(["failed", "error", "passed", "xfailed", "skipped"])]
    page = Page(render(results(*records)))
    assert "✗!x– 1/4" in page.text
    assert "1 failed, 1 error, 1 xfailed, 1 passed, 1 skipped" in page.text
    for told in ("✗ failed", "! error", "✓ passed", "x xfailed", "– skipped"):
        assert told in page.text
    assert "(known: known since 4.57)" in page.text


def test_targets_show_what_was_asked_and_what_became_of_it():
    targets = (
        Target("tiny", "m", Model(path="p", dtype="float16", attention="sdpa"), "nf4"),
        Target("gone", "m", Model(path="p")),
    )
    facts = TargetFacts("tiny", "cpu", "bfloat16", "sdpa", modules={"Linear4bit/uint8": 210}, weight_bytes=135_000_000)
    done = completion("hi", seconds=4.0, batch_size=2, memory_bytes=2_500_000)
    outcome = results(record(), facts=(facts,), targets=targets, completions=(("tiny", done),))
    text = Page(render(outcome)).text
    row = text[text.index("tiny m, nf4") :]
    assert row.startswith("tiny m, nf4 float16 → bfloat16 sdpa cpu 210 × Linear4bit/uint8 – 135 0 2.5 1 1/1")
    assert "gone m, none auto (not loaded)" in text


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
    text = page.text[start : page.text.index("All results")]
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
    assert "\\x1b[31mred" in html
    assert "{{ 7 * 7 }}" in Page(render(everywhere("{{ 7 * 7 }}"))).text


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
    html = render(outcome)
    assert len(html) < 60_000
    text = Page(html).text
    assert "… and 996,003 more characters; all of it in tokens.parquet" in text
    assert "… and 996,003 more characters; all of it in results.parquet" in text


def test_a_long_table_begins_closed_with_what_failed_on_top():
    records = [record(str(number)) for number in range(6000)] + [record("last", "failed")]
    page = Page(render(results(*records)))
    (details,) = page.having("details")
    assert "open" not in details
    assert "6,001 verdicts" in page.text
    assert "… and 1,001 more in results.parquet" in page.text
    table = page.text[page.text.index("6,001 verdicts") :]
    assert table.index("last") < table.index("✓ passed")
    (short,) = Page(render(results(record()))).having("details")
    assert "open" in short


def test_an_error_shared_by_many_checks_is_told_once():
    verdict = Verdict("error", "no such model")
    records = [record(str(number), "error", verdict=verdict) for number in range(3)]
    page = Page(render(results(*records, errors=("tiny: no such model", "other: out of memory"))))
    assert len(page.having("article")) == 1
    assert "and 2 more of tiny for the same reason" in page.text
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


def luminance(colour):
    parts = [int(colour[i : i + len(colour) // 3], 16) for i in range(0, len(colour), len(colour) // 3)]
    scaled = [(part * 17 if len(colour) == 3 else part) / 255 for part in parts]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in scaled]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_of_text_is_readable_in_light_and_dark():
    rules = re.findall(r":root \{(.*?)\}", render(results(record())), re.DOTALL)
    assert len(rules) == 2
    for rule in rules:
        colours = dict(re.findall(r"--(\w+): #([0-9a-f]+)", rule))
        for name in ("ink", "soft", "good", "bad", "odd", "known", "link"):
            for ground in ("paper", "panel"):
                bright, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
                assert (bright + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


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
    order = ("Decision", "do not ship", "Candidates against the baseline", "Pareto set:", "What failed", "All results")
    places = [page.text.index(part) for part in order]
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


def test_the_chart_has_a_point_for_each_candidate_and_a_text_for_those_who_do_not_see_it(compared):
    page = Page(render(compared()))
    (chart,) = page.having("svg", role="img")
    assert chart["aria-label"] == (
        "peak memory, MB against tokens/s in batch. "
        "fp32, KL 0: 600 MB, 31 tokens/s; int8, KL 0.0200: 300 MB, 22 tokens/s; nf4, KL 0.300: 250 MB, 36 tokens/s"
    )
    points = [(float(dot["cx"]), -float(dot["cy"])) for dot in page.having("circle")]
    assert len(points) == 3
    nf4, fp32, int8 = points  # the fastest first
    assert nf4[0] < int8[0] < fp32[0]
    assert nf4[1] > fp32[1] > int8[1]
    assert len(page.having("circle", **{"class": "point filled"})) == 3


def test_two_candidates_are_compared_in_a_folded_block(compared):
    page = Page(render(compared()))
    differences, results_table = page.having("details")
    assert "open" not in differences
    assert "open" in results_table
    assert "Every two candidates, on the same prompts (2) int8 better than nf4 in KL by 0.280" in page.text


def test_a_comparison_without_a_budget_says_how_to_get_a_decision(compared):
    text = Page(render(compared(budget=None))).text
    assert "write into the suite what a target may cost: budget: max_kl: 0.1" in text
    assert "do not ship" not in text


def test_a_comparison_without_speed_has_no_chart(compared, measures):
    page = Page(render(compared(measured=measures(timings=()))))
    assert not page.having("svg")
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
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"script", "img", "link", "iframe", "form", "a", "use", "image"}
    )
    assert not [name for _, found in page.elements for name in found if name in ("src", "href", "style")]
    assert all("scope" in found for found in page.having("th"))
    assert all("tabindex" in found and "aria-label" in found for found in page.having("div", **{"class": "scroll"}))
