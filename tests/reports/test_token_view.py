"""Token views: which sides stand beside each other, how they are aligned, and what is said of each token."""

import json
import math
import random
from array import array
from pathlib import Path

import pytest

from harness.comparison.measured import Answered
from harness.inputs import GREEDY, Generation
from harness.pins.pin import Pin
from harness.record import Batch, Completion, Record, Request, Step, Target, TargetFacts, Text, Verdict
from harness.reports import token_view
from harness.reports.token_view import align, texts, views

WORDS = ("The", " capital", " is", " Paris", ".", ",", " also", " known", "\n", " a")
IDS = {word: 10 + number for number, word in enumerate(WORDS)}
EOS, PAD = 2, 0
IDS |= {"<|im_end|>": EOS}
SHORT = ("The", " capital", " is", " Paris", ".", "<|im_end|>")
LONG = ("The", " capital", " is", " Paris", ",", " also", " known")
ASKED = Request(Text("Capital?"), GREEDY)
CHECK = "s.yaml::fp32::names[capital]"


def step(logprob=-0.5, **others):
    """`others`: words and what they are like; the token itself is not among them unless it is named."""
    return Step(logprob, tuple(IDS[word] for word in others), array("f", others.values()), 20.0)


def done(words, request=ASKED, finish="length", steps=(), **changes):
    ids = tuple(IDS.setdefault(word, 100 + len(IDS)) for word in words)
    made = {"prompt_text": "Capital?", "prompt_ids": (1, 5), "text": "".join(words), "finish": finish, "steps": steps}
    return Completion(request, ids=ids, tokens=tuple(words), **(made | changes))


def record(*requests, target="fp32", outcome="failed", prompt="capital", expectation="contains", **changes):
    made = {
        "check": f"s.yaml::{target}::names[{prompt}]",
        "suite": "s",
        "file": "s.yaml",
        "line": 3,
        "test": "names",
        "target": target,
        "model": "m",
        "quantization": "none",
        "prompt": prompt,
        "generation": "greedy",
        "expectation": expectation,
        "verdict": Verdict(outcome, f"it {outcome}"),
        "requests": tuple(request.id for request in requests),
    }
    return Record(**(made | changes))


@pytest.fixture
def shown(compared):
    """shown(records, completions, **changes): the results, and all views of them."""

    def show(records, completions, **changes):
        made = {"facts": (), "measured": None, "budget": None, "errors": ()} | changes
        results = compared(records=tuple(records), completions=tuple(completions), **made)
        return results, views(results)

    return show


@pytest.fixture
def view(shown):
    """The only view of such results."""

    def only(records, completions, **changes):
        (one,) = shown(records, completions, **changes)[1].values()
        return one

    return only


def names(view):
    return [side["name"] for side in view["sides"]]


def said(view, side):
    """What a row of the view says, column by column."""
    tokens = view["sides"][side]["tokens"]
    return ["–" if column[side] is None else tokens[column[side]][0] for column in view["aligned"]]


# --- alignment ----------------------------------------------------------------------------------------------------


def drawn(first, other, skipped=0):
    """Two aligned words, one above the other."""
    pairs = align(first, other, skipped)
    return (
        "".join("–" if i is None else first[i] for i, _ in pairs),
        "".join("–" if j is None else other[j] for _, j in pairs),
    )


@pytest.mark.parametrize(
    ("first", "other", "rows"),
    [
        ("abc", "abc", ("abc", "abc")),
        ("abc", "axc", ("abc", "axc")),
        ("abcdef", "abXcdef", ("abc–def", "abXcdef")),
        ("abXcdef", "abcdef", ("abXcdef", "abc–def")),
        ("abcdef", "aXYdef", ("abcdef", "aXYdef")),
        ("abcd", "ab", ("abcd", "ab––")),
        ("", "ab", ("––", "ab")),
        ("", "", ("", "")),
        # One letter in common, five places off: a match would tear the rows apart.
        ("abc.", "aopqrstu.", ("abc.–––––", "aopqrstu.")),
        # The same five places for three letters are worth it.
        ("abxyz", "aopqrstxyz", ("ab–––––xyz", "aopqrstxyz")),
    ],
)
def test_two_sides_are_aligned_by_what_changed(first, other, rows):
    assert drawn(first, other) == rows


def test_a_side_that_goes_on_from_a_part_of_the_first_begins_there():
    assert drawn("abcdef", "def", 3) == ("abcdef", "–––def")
    assert drawn("abcdef", "deXf", 3) == ("abcdef–", "–––deXf")


def test_any_two_sides_are_aligned_in_order_with_nothing_lost_and_as_one_up_to_the_first_difference():
    chance = random.Random(1)
    for _ in range(300):
        first, other = (chance.choices("abc.", k=chance.randrange(20)) for _ in range(2))
        pairs = align(first, other)
        assert [i for i, _ in pairs if i is not None] == list(range(len(first)))
        assert [j for _, j in pairs if j is not None] == list(range(len(other)))
        same = next(
            (i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(map(len, (first, other)))
        )
        assert pairs[:same] == [(i, i) for i in range(same)]


def test_several_sides_share_their_columns(view):
    base = ("The", " capital", " is", ".")
    more = ("The", " also", " capital", " is", ".")
    most = ("The", " also", " known", " capital", " is", ".")
    asked = [ASKED.replace(layout="alone", repeat=repeat) for repeat in range(3)]
    made = view(
        [record(*asked)], [("fp32", done(words, one)) for words, one in zip((base, more, most), asked, strict=True)]
    )
    assert said(made, 0) == ["The", " capital", "–", "–", " is", "."]
    assert said(made, 1) == ["The", " also", " capital", "–", " is", "."]
    assert said(made, 2) == ["The", " also", " known", " capital", " is", "."]
    assert made["divergence"]["column"] == 1


# --- which sides ---------------------------------------------------------------------------------------------------


def test_a_check_shows_all_that_it_was_judged_on_and_where_it_parts(view):
    alone, batched = ASKED.replace(layout="alone"), ASKED.replace(layout=Batch((ASKED.prompt, Text("x"))))
    sure = tuple(step() for _ in range(4))
    one = done(SHORT, alone, "eos", (*sure, step(-0.5, **{".": -0.5, ",": -0.7}), step()))
    other = done(LONG, batched, "length", (*sure, step(-0.25, **{",": -0.25, ".": -1.25}), *sure[:2]), padding="left")
    made = view([record(alone, batched)], [("fp32", one), ("fp32", done(LONG)), ("fp32", _padded(other, 59, 3))])
    assert made["title"] == "names[capital] on fp32: contains"
    assert names(made) == ["alone", "in a batch of 3"]
    assert [side["finish"] for side in made["sides"]] == ["eos", "length"]
    assert [(side["pads"], side["padding"]) for side in made["sides"]] == [(0, ""), (59, "left")]
    assert said(made, 0) == [*SHORT, "–"]
    assert said(made, 1) == list(LONG)
    # A sees 0.2 nats between the two, B 1.0: the larger counts.
    assert made["divergence"] == {
        "column": 4,
        "margin": 1.0,
        "sentence": "A and B part at token 4: margin 1 nats, above float32 noise (0.001 nats)",
    }


def _padded(completion, pads, rows):
    return Completion(**(vars(completion) | {"pads": pads, "batch_size": rows}))


def test_other_targets_stand_beside_it_the_baseline_first(view):
    targets = tuple(Target(name, "m", None) for name in ("fp32", "int8", "nf4"))
    completions = [("nf4", done(LONG)), ("int8", done(SHORT)), ("fp32", done(SHORT))]
    made = view([record(ASKED, target="nf4")], completions, targets=targets)
    assert names(made) == ["fp32", "nf4", "int8"]
    assert [side["judged"] for side in made["sides"]] == [False, True, False]
    assert made["divergence"]["sentence"].startswith("A and B part at token 4")
    made = view([record(ASKED, target="fp32")], completions, targets=targets)
    assert names(made) == ["fp32", "int8", "nf4"]


def test_with_several_sides_of_its_own_the_others_follow(view):
    runs = [ASKED.replace(layout="alone", repeat=repeat) for repeat in (0, 1)]
    completions = [("fp32", done(SHORT, runs[0])), ("nf4", done(LONG, runs[0])), ("nf4", done(SHORT, runs[1]))]
    made = view([record(*runs, target="nf4")], completions)
    assert names(made) == ["nf4, alone", "nf4, alone, run 2", "fp32"]
    assert made["divergence"]["sentence"].startswith("A and B part")


def test_how_each_was_made_is_said_where_it_differs(view):
    ways = {
        "alone, row 2": {"row": 2},
        "in one forward pass": {"kind": "score"},
        "alone, in a fresh process": {"fresh_process": True},
        "alone, eager attention": {"attention": "eager"},
        "alone, in float32": {"float32": True},
        "alone, with position ids": {"position_ids": True},
        "alone, going on from the cache after 3": {"resume_after": 3},
        "alone, use_cache: False": {"generation": GREEDY.model_copy(update={"use_cache": False})},
        "in a batch of 1, without an attention mask": {"layout": Batch((ASKED.prompt,), attention_mask=False)},
        "in a batch of 1, padded with token 7": {"layout": Batch((ASKED.prompt,), pad_token_id=7)},
    }
    alone = ASKED.replace(layout="alone")
    for words, changes in ways.items():
        other = alone.replace(**changes)
        made = view([record(alone, other)], [("fp32", done(SHORT, alone)), ("fp32", done(LONG, other))])
        assert names(made) == ["alone", words]


def test_all_expectations_of_a_check_that_did_not_pass_share_a_view(shown):
    other = ASKED.replace(layout="alone")
    records = [record(ASKED), record(other, expectation="no_cache"), record(ASKED, outcome="passed", expectation="eos")]
    (made,) = shown(records, [("fp32", done(SHORT)), ("fp32", done(LONG, other))])[1].values()
    assert made["title"] == "names[capital] on fp32: contains, no_cache"
    assert names(made) == ["fp32", "alone"]


def test_what_passed_or_was_skipped_has_no_view_and_failures_come_before_known_ones(shown):
    outcomes = {"a": "passed", "b": "skipped", "c": "failed", "d": "error", "e": "failed"}
    records = [record(ASKED, outcome=outcome, prompt=prompt) for prompt, outcome in outcomes.items()]
    records[2] = record(ASKED, prompt="c", xfail="known")
    assert list(shown(records, [("fp32", done(SHORT))])[1]) == [f"s.yaml::fp32::names[{name}]" for name in "edc"]


def test_an_answer_that_holds_no_tokens_of_the_model_is_no_side(shown):
    rendered = ASKED.replace(kind="render")
    assert shown([record(rendered)], [("fp32", done((), rendered))])[1] == {}
    assert shown([record(ASKED)], [])[1] == {}


def test_a_check_over_all_prompts_shows_one_on_which_something_differs(view):
    pairs = [(Request(Text(name), GREEDY), Request(Text(name), GREEDY, "alone")) for name in ("same", "other")]
    completions = [("fp32", done(SHORT, request)) for pair in pairs for request in pair]
    completions[-1] = ("fp32", done(LONG, pairs[1][1]))
    made = view([record(*pairs[0], *pairs[1], prompt="", expectation="pass_rate")], completions)
    assert made["divergence"]["column"] == 4
    assert made["note"] == "one of 2 prompts, the first whose sides differ; the others are in tokens.parquet"
    assert made["title"] == "names on fp32: pass_rate"


def test_of_many_runs_those_that_differ_are_shown(view):
    runs = [ASKED.replace(layout="alone", repeat=repeat) for repeat in range(20)]
    completions = [("fp32", done(LONG if repeat == 13 else SHORT, run)) for repeat, run in enumerate(runs)]
    made = view([record(*runs)], completions)
    assert names(made) == ["alone", "alone, run 14", "alone, run 2", "alone, run 3"]
    assert made["note"] == "16 more runs in tokens.parquet, 16 with the tokens of the first"


def test_no_more_targets_than_can_be_read(view):
    completions = [(f"t{number}", done(SHORT)) for number in range(9)]
    made = view([record(ASKED, target="t0")], completions)
    assert names(made) == [f"t{number}" for number in range(6)]
    assert made["note"] == "3 more targets in tokens.parquet"


def test_going_on_from_the_first_half_begins_at_its_middle(view):
    alone = ASKED.replace(layout="alone")
    rest = alone.replace(prompt=Text(ids=(1, 5, 10, 11)))
    own, its = step(-0.25, **{" Paris": -0.25, " also": -0.75}), step(-0.5, **{" also": -0.5, " Paris": -0.625})
    steps = (step(), its, step(), step())
    second = done((" is", " also", ".", "<|im_end|>"), rest, prompt_ids=(1, 5, 10, 11), steps=steps)
    first = done(SHORT, alone, steps=(*[step()] * 3, own, step(), step()))
    made = view([record(alone, rest)], [("fp32", first), ("fp32", second)])
    assert said(made, 1) == ["–", "–", " is", " also", ".", "<|im_end|>"]
    assert made["divergence"]["column"] == 3
    assert made["divergence"]["margin"] == 0.5
    assert "token 3" in made["divergence"]["sentence"]


# --- pins ----------------------------------------------------------------------------------------------------------


def test_a_pin_stands_before_what_is_now_and_what_it_makes_of_the_pinned_tokens(view):
    led = ASKED.replace(kind="replay", continuation=tuple(IDS[word] for word in SHORT), whole=False)
    pinned = tuple(step(-0.1) for _ in SHORT)
    pin = Pin("capital", "greedy", "d", (1, 5), led.continuation, "eos", "".join(SHORT), pinned)
    now = done(LONG, steps=tuple(step(-0.2) for _ in LONG))
    replay = done(SHORT, led, steps=tuple(step(-0.3) for _ in SHORT))
    made = view([record(ASKED, led)], [("fp32", now), ("fp32", replay), ("nf4", done(SHORT))], pins={CHECK: pin})
    assert names(made) == ["fp32, pin", "fp32, now", "fp32, now, led along the pin", "nf4"]
    assert [side["finish"] for side in made["sides"]] == ["eos", "length", "", "length"]
    assert [side["tokens"][0][2] for side in made["sides"]] == [-0.1, -0.2, -0.3, None]
    assert [token[0] for token in made["sides"][0]["tokens"]] == list(SHORT)
    assert made["divergence"]["column"] == 4
    made = view([record(ASKED)], [("fp32", now)], pins={CHECK: pin}, texts={"fp32": {IDS["."]: "."}})
    assert names(made) == ["pin", "now"]
    assert [token[0] for token in made["sides"][0]["tokens"]][4:] == [".", f"#{EOS}"]


# --- comparisons ---------------------------------------------------------------------------------------------------


def test_a_comparison_has_a_view_of_each_prompt_of_each_candidate_what_differs_first(compared):
    made = views(compared(records=()))
    keys = [f"compare::{name}::p{number}" for name in ("nf4", "int8") for number in range(8)]
    completions = {(target, one.request.id): one.ids for target, one in compared().completions}
    assert sorted(made) == sorted(keys)
    assert all(len(side["tokens"]) == 4 for view in made.values() for side in view["sides"])
    assert len(set(completions.values())) == 1  # all wrote the same: nothing differs
    one = made["compare::nf4::p3"]
    assert one["title"] == "p3: nf4 against fp32"
    assert names(one) == ["fp32", "nf4", "nf4, led along fp32"]
    assert one["divergence"] is None
    # Of the measured replay: its log-probability of each forced token, and its KL.
    assert one["sides"][2]["kl"] == [0.35] * 4
    assert [token[2] for token in one["sides"][2]["tokens"]] == [-1.0] * 4
    assert one["sides"][2]["finish"] == ""


def test_what_differs_comes_first_and_a_recorded_replay_shows_its_likeliest(compared):
    results = compared(records=())
    changed = [
        (target, done(LONG, one.request)) if (target, one.request.prompt.text) == ("int8", "Say p5") else (target, one)
        for target, one in results.completions
    ]
    base = dict(changed)["fp32"]
    path = next(one for target, one in changed if target == "fp32" and one.request.prompt.text == "Say p5")
    led = path.request.replace(kind="replay", continuation=base.ids, generation=Generation(max_new_tokens=4))
    steps = tuple(Step(-0.7, (300, 301), (-0.2, -1.9), 9.0) for _ in base.ids)
    replay = Completion(**(vars(path) | {"request": led, "steps": steps}))
    made = views(compared(records=(), completions=(*changed, ("int8", replay))))
    assert next(iter(made)) == "compare::int8::p5"
    assert made["compare::int8::p5"]["sides"][2]["tokens"][1] == [" two", 101, -0.7, False, [[300, -0.2], [301, -1.9]]]
    assert made["compare::int8::p5"]["divergence"]["column"] == 0


def test_failed_checks_come_before_comparisons_and_what_was_not_measured_has_none(compared, measures):
    made = list(views(compared()))
    assert made[0] == "suites/levels.yaml::nf4::counts[p0]"
    assert not [key for key in made if "fp8" in key]
    alone = measures(answered=(Answered("nf4", "p0", "?", None, "another tokenizer"),))
    assert list(views(compared(measured=alone))) == made[:1]


def test_why_there_is_no_replay_is_said(compared, measures):
    answered = tuple(
        one if one.candidate == "fp32" else Answered(one.candidate, one.prompt, one.request, None, "too large")
        for one in measures().answered
    )
    made = views(compared(records=(), measured=measures(answered=answered)))["compare::nf4::p0"]
    assert names(made) == ["fp32", "nf4"]
    assert made["note"] == "too large"


# --- what is said of tokens ----------------------------------------------------------------------------------------


def test_a_token_says_how_likely_it_was_and_what_was_likelier(view):
    likely = {" is": -0.4, " a": -1.3, ".": -2.5, ",": -3.0, " also": -3.5, " known": -4.0}
    made = view([record(ASKED)], [("fp32", done((" a",), steps=(step(-1.3, **likely),)))])
    (token,) = made["sides"][0]["tokens"]
    assert token[:4] == [" a", IDS[" a"], -1.3, False]
    assert token[4] == [[IDS[word], value] for word, value in list(likely.items())[:5]]


def test_special_tokens_are_known_by_their_id_and_by_their_looks(view):
    facts = (TargetFacts("fp32", eos_token_ids=(IDS["."],), pad_token_id=IDS[","]),)
    words = (".", ",", "The", "<s>", "</s>", "<pad>", "<|im_end|>", "[PAD]", "<b>", "a<s>", "<s>a", "<start_of_turn>")
    made = view([record(ASKED)], [("fp32", done(words))], facts=facts)
    special = [token[0] for token in made["sides"][0]["tokens"] if token[3]]
    assert special == [".", ",", "<s>", "</s>", "<pad>", "<|im_end|>", "[PAD]", "<start_of_turn>"]


def test_what_stands_after_the_end_of_a_row_is_counted(view):
    facts = (TargetFacts("fp32", pad_token_id=PAD),)
    for tail, words in {(): "", (PAD, PAD): "then 2 pad", (PAD, 7): "then 2 tokens, 1 not pad"}.items():
        assert view([record(ASKED)], [("fp32", done(SHORT, tail=tail))], facts=facts)["sides"][0]["tail"] == words


def test_numbers_that_are_not_finite_are_words(view):
    steps = (Step(-math.inf, (5,), (math.nan,), math.inf), Step(-0.00001, (5,), (-0.0,), 1.0))
    made = view([record(ASKED)], [("fp32", done(SHORT[:2], steps=steps))])
    assert [token[2] for token in made["sides"][0]["tokens"]] == ["-inf", 0.0]
    assert "NaN" not in json.dumps(made, allow_nan=False)
    assert "-0.0" not in json.dumps(made)


def test_foreign_text_comes_through_and_cannot_act(view):
    words = ("\x1b[31m", "\u202e", "\ud800", "שלום", " مر", "e\u0301", "\u0301", "日本", "", "\n", "x" * 500)
    made = view([record(ASKED, expectation="a\u202eb")], [("fp32", done(words))])
    text = [token[0] for token in made["sides"][0]["tokens"]]
    assert text[:3] == ["\\x1b[31m", "\\u202e", "\\ud800"]
    assert text[3:10] == list(words[3:10])
    assert text[10] == "x" * 59 + "…"
    assert made["title"].endswith("a\\u202eb")
    json.dumps(made, ensure_ascii=False).encode()


def test_sides_without_steps_are_aligned_all_the_same(view):
    beams = Request(Text("Capital?"), Generation(num_beams=4))
    made = view([record(beams, beams.replace(layout="alone"))], [
        ("fp32", done(SHORT, beams)), ("fp32", done(LONG, beams.replace(layout="alone"))),
    ])  # fmt: skip
    assert made["divergence"] == {
        "column": 4,
        "margin": None,
        "sentence": "A and B part at token 4; no log-probabilities were recorded",
    }
    assert made["sides"][0]["tokens"][0] == ["The", 10, None, False, []]


def test_an_empty_output_is_a_side_and_an_end_is_no_other_token(view):
    other = ASKED.replace(layout="alone")
    made = view([record(ASKED, other)], [("fp32", done((), finish="eos")), ("fp32", done(SHORT, other))])
    assert made["sides"][0] | {"tokens": [], "count": 0} == made["sides"][0]
    assert said(made, 0) == ["–"] * len(SHORT)
    assert made["divergence"] == {"column": 0, "margin": None, "sentence": "A ends before token 0, B goes on"}
    made = view([record(ASKED)], [("fp32", done((), finish="eos"))])
    assert made["aligned"] == []
    assert made["divergence"] is None


def test_the_output_of_an_encoder_decoder_does_not_go_on_from_its_prompt(view):
    other = ASKED.replace(layout="alone")
    made = view([record(ASKED, other)], [
        ("fp32", done(SHORT, prompt_ids=(7, 8))), ("fp32", done(LONG, other, prompt_ids=(7, 8, 9, 1))),
    ])  # fmt: skip
    assert said(made, 1) == list(LONG)


def test_tokens_of_another_tokenizer_are_aligned_by_what_they_say(view):
    facts = (TargetFacts("fp32", tokenizer_digest="a"), TargetFacts("other", tokenizer_digest="b"))
    theirs = done(LONG)
    theirs = Completion(**(vars(theirs) | {"ids": tuple(range(500, 507))}))
    made = view([record(ASKED, target="fp32")], [("fp32", done(SHORT)), ("other", theirs)], facts=facts)
    assert made["by_text"]
    assert made["divergence"] == {
        "column": 4,
        "margin": None,
        "sentence": "A and B part at token 4; their tokenizers differ",
    }
    assert made["note"] == "another tokenizer: aligned by what tokens say"


def test_the_texts_of_all_tokens_that_a_view_names_are_given(shown):
    steps = (step(-0.1, **{"The": -0.1, " a": -3.0, " known": -4.0}),)
    known = {"fp32": {IDS[" a"]: "\u202ea", 777: "of no view"}, "nf4": {1: "?"}}
    results, made = shown([record(ASKED)], [("fp32", done(("The",), steps=steps))], texts=known)
    assert texts(results, made) == {"fp32": {IDS["The"]: "The", IDS[" a"]: "\\u202ea"}}


# --- limits --------------------------------------------------------------------------------------------------------


def numbered(*numbers):
    return tuple(f" w{number}" for number in numbers)


def test_of_long_sides_the_tokens_around_the_first_difference_are_shown(view):
    other = ASKED.replace(layout="alone")
    long, changed = numbered(*range(500)), numbered(*range(400), 999, *range(401, 430))
    made = view([record(ASKED, other)], [("fp32", done(long)), ("fp32", done(changed, other))])
    first, second = made["sides"]
    assert (first["start"], first["count"], len(first["tokens"])) == (350, 500, 150)
    assert (second["start"], second["count"], len(second["tokens"])) == (350, 430, 80)
    assert first["tokens"][0][0] == " w350"
    assert made["divergence"]["column"] == 50
    assert said(made, 1)[50] == " w999"
    assert made["note"] == "at most 200 tokens of a side are shown, the rest is in tokens.parquet"


def test_of_long_sides_that_part_early_the_first_tokens_are_shown(view):
    other = ASKED.replace(layout="alone")
    made = view([record(ASKED, other)], [
        ("fp32", done(numbered(*range(300)))), ("fp32", done(numbered(0, *range(600, 900)), other)),
    ])  # fmt: skip
    assert [(side["start"], len(side["tokens"])) for side in made["sides"]] == [(0, 200), (0, 200)]
    assert made["divergence"]["column"] == 1


def many(count, length):
    asked = [Request(Text(f"{number}"), GREEDY) for number in range(count)]
    steps = tuple(step(-1.2345, **{word: -1.2345 for word in LONG[:5]}) for _ in range(length))
    completions = [("fp32", done(numbered(*range(length)), request, steps=steps)) for request in asked]
    return [record(request, prompt=f"p{number}") for number, request in enumerate(asked)], completions


def test_there_are_no_more_views_than_a_page_bears(shown):
    assert len(shown(*many(301, 1))[1]) == 300


def test_where_there_are_many_views_each_shows_fewer_tokens(shown, monkeypatch):
    monkeypatch.setattr(token_view, "SIZE", 600_000)
    made = shown(*many(80, 200))[1]
    assert len(made) == 80
    assert {len(view["sides"][0]["tokens"]) for view in made.values()} == {60}  # 600,000 / 125 / 80
    assert len(json.dumps(made)) < 1.2 * 600_000


def test_the_page_has_a_size(shown, monkeypatch):
    monkeypatch.setattr(token_view, "SIZE", 100_000)
    made = shown(*many(80, 200))[1]
    assert 10 < len(made) < 80
    assert len(json.dumps(made, separators=(",", ":"))) < 110_000
    assert {len(view["sides"][0]["tokens"]) for view in made.values()} == {40}  # not fewer


# --- the script ----------------------------------------------------------------------------------------------------


def test_nothing_that_a_model_wrote_becomes_markup_or_code():
    folder = Path(token_view.__file__).parent
    script, style = (folder / f"token_view.{kind}" for kind in ("js", "css"))
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "srcdoc",
        "fetch(",
    ):
        assert word not in script.read_text()
    assert "style:" not in script.read_text()
    assert "url(" not in style.read_text()
    assert "@import" not in style.read_text()
