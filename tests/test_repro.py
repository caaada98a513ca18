"""Failures made smaller, and written as scripts: no model is needed to see that."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from harness.repro import RUNS, Reproduction, Side, Weights, minimise, script, write

NASTY = 'a "quoted" \'text\'\nwith lines\r, \\ backslashes, {braces}, 😀, \u2028, \u202e and """'
GREEDY = {"do_sample": False, "max_new_tokens": 40, "min_new_tokens": 30, "repetition_penalty": 1.2}
PROMPT = tuple(range(10, 30))
OTHERS = tuple((50 + n,) * (3 + n) for n in range(6))


def side(name: str = "alone", rows: Any = (PROMPT,), arguments: Any = GREEDY, **fields: Any) -> Side:
    return Side(name, rows, 0, arguments, **fields)


def pair(**fields: Any) -> Reproduction:
    rows = (*OTHERS[:2], PROMPT, *OTHERS[2:])
    return Reproduction(Weights("model"), (side(), side("in a batch", rows, row=2, **fields)))


class Failing:
    """Says whether a made-up model fails, and keeps what it was asked."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.asked: list[Reproduction] = []

    def __call__(self, candidate: Reproduction) -> bool:
        self.asked.append(candidate)
        return bool(self.rule(*candidate.sides))


def test_only_what_the_failure_needs_is_left() -> None:
    """It takes token 11, a neighbour that begins with 54, ids 13 and 21 of the prompt and the penalty."""

    def needs(alone: Side, batch: Side) -> bool:
        neighbour = any(row[0] == 54 for place, row in enumerate(batch.rows) if place != batch.row)
        prompt = {13, 21} <= {*batch.prompt} and alone.prompt == batch.prompt
        return neighbour and prompt and batch.length >= 12 and "repetition_penalty" in batch.arguments

    fails = Failing(needs)
    small = minimise(pair(), fails)

    alone, batch = small.sides
    assert batch.rows == ((13, 21, 29), (54,))
    assert (alone.rows, alone.row, batch.row) == (((13, 21, 29),), 0, 0)
    for left in (alone, batch):
        assert left.arguments == {"do_sample": False, "max_new_tokens": 12, "repetition_penalty": 1.2}
    assert len(fails.asked) <= RUNS


def test_every_step_was_run_and_the_same_is_done_every_time() -> None:
    def needs(alone: Side, batch: Side) -> bool:
        return len(batch.rows) > 2 and 13 in batch.prompt

    first, again = Failing(needs), Failing(needs)
    small = minimise(pair(), first)

    assert small in first.asked
    assert minimise(pair(), again) == small
    assert again.asked == first.asked


@pytest.mark.parametrize("runs", [0, 1, 7])
def test_it_is_never_run_more_often_than_allowed(runs: int) -> None:
    fails = Failing(lambda *sides: True)
    small = minimise(pair(), fails, runs)

    assert len(fails.asked) == runs
    assert small == (fails.asked[-1] if runs else pair())


def test_what_cannot_be_made_smaller_stays() -> None:
    assert minimise(pair(), lambda _: False) == pair()


def test_sampling_is_never_left_to_the_models_own_config() -> None:
    small = minimise(pair(), lambda _: True)

    assert [made.arguments for made in small.sides] == [{"do_sample": False, "max_new_tokens": 1}] * 2
    assert small.sides[1].rows == ((29,),)


def test_the_argument_that_is_compared_stays() -> None:
    static = pair(arguments=GREEDY | {"cache_implementation": "static", "repetition_penalty": 1.3})
    alone, batch = minimise(static, lambda _: True).sides

    assert alone.arguments == {"do_sample": False, "max_new_tokens": 1, "repetition_penalty": 1.2}
    assert batch.arguments == {**alone.arguments, "repetition_penalty": 1.3, "cache_implementation": "static"}


def test_a_neighbour_leaves_both_batches() -> None:
    rows = (*OTHERS, PROMPT)
    both = Reproduction(Weights("model"), (side("a", rows, row=6), side("b", rows, row=6)))
    seen = Failing(lambda first, second: first.rows == second.rows and len(first.rows) > 1)
    minimise(both, seen)

    assert all(first.rows == second.rows for first, second in (asked.sides for asked in seen.asked))


def test_of_a_pin_only_the_end_is_cut() -> None:
    pinned = Reproduction(Weights("model"), (side(rows=(PROMPT, *OTHERS)),), tuple(range(40)))
    small = minimise(pinned, lambda one: one.sides[0].length >= 5)

    assert small.pinned == (0, 1, 2, 3, 4)
    assert small.sides[0].rows == (PROMPT, *OTHERS)
    assert small.sides[0].arguments == GREEDY | {"max_new_tokens": 5, "min_new_tokens": 5}


def test_without_a_limit_the_librarys_own_is_where_it_begins() -> None:
    unsaid = Reproduction(Weights("model"), (side(arguments={"do_sample": False}),), tuple(range(20)))
    fails = Failing(lambda one: one.length >= 5)

    assert minimise(unsaid, fails).sides[0].arguments == {"do_sample": False, "max_new_tokens": 5}
    assert fails.asked[0].sides[0].length == 10


def constants(text: str) -> dict[str, Any]:
    """What the script's constants hold, read without running it."""
    tree = ast.parse(text)
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    named = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}
    model = named.pop("MODEL")
    assert isinstance(model, ast.IfExp)
    return {name: ast.literal_eval(value) for name, value in (*named.items(), ("MODEL", model.orelse))}


def test_any_text_is_data_and_never_source() -> None:
    arguments = {"do_sample": False, "stop_strings": [NASTY, "'", '"']}
    weights = Weights(f"/models/{NASTY}", origin=NASTY, revision=NASTY)
    one = Reproduction(weights, (side(NASTY, arguments=arguments),), (1, 2), NASTY)

    text = script(one)
    held = constants(text)
    assert held["MODEL"] == f"/models/{NASTY}"
    assert held["WHERE"] == {"revision": NASTY}
    assert list(held["CALLS"]) == [NASTY]
    assert held["CALLS"][NASTY]["arguments"] == arguments
    assert held["PINNED"] == [1, 2]
    assert text.isascii() is False  # 😀 is readable
    assert not {"\r", "\u2028", "\u202e"} & set(text)


def test_what_is_called_stands_in_the_script_as_data() -> None:
    rows = (PROMPT, OTHERS[5])
    made = side("padded", rows, row=1, padding="right", attention_mask=False, attention="eager", seed=7)
    held = constants(script(Reproduction(Weights("model"), (side(), made))))

    assert held["CALLS"]["padded"] == {
        "rows": [list(PROMPT), list(OTHERS[5])],
        "pad_token_id": 0,
        "arguments": GREEDY,
        "row": 1,
        "padding": "right",
        "attention_mask": False,
        "seed": 7,
        "attention": "eager",
    }
    assert "attention" not in held["CALLS"]["alone"]
    assert held["PINNED"] is None


def test_the_source_is_short_and_says_what_it_shows() -> None:
    shows = "right-padded, the tokens differ from those alone at token 0. " * 4
    long = Reproduction(Weights("model"), (side(rows=(tuple(range(1000, 1200)),)), side("b")), None, shows)
    lines = script(long).splitlines()

    assert max(map(len, lines)) <= 120
    assert len(lines) < 140
    comments = [line[2:] for line in lines if line.startswith("# ")]
    assert " ".join(comments) == shows.strip()
    imported = {name.split(".")[0] for node in ast.parse("\n".join(lines)).body for name in _imported(node)}
    assert imported == {"sys", "torch", "transformers"}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [str(node.module)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


@pytest.mark.parametrize(
    ("weights", "holds", "lacks"),
    [
        (
            Weights("m"),
            ["AutoModelForCausalLM", '.to("cpu")'],
            ["BitsAndBytes", "device_map", "attn_implementation=", "Seq2Seq"],
        ),
        (
            Weights("m", device="cuda:0", quantization={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
            [
                'quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")',
                'device_map={"": "cuda:0"}',
            ],
            [".to("],
        ),
        (Weights("m", device="auto"), ['device_map="auto"'], [".to("]),
        (Weights("m", dtype="bfloat16", attention="eager"), ['dtype="bfloat16"', 'attn_implementation="eager"'], []),
        (Weights("m", encoder_decoder=True), ["AutoModelForSeq2SeqLM.from_pretrained("], ["AutoModelForCausalLM"]),
        (
            Weights("org/name", revision="abc", trust_remote_code=True),
            ['WHERE = {"revision": "abc", "trust_remote_code": True}'],
            [],
        ),
    ],
)
def test_the_model_is_loaded_as_it_was(weights: Weights, holds: list[str], lacks: list[str]) -> None:
    text = script(Reproduction(weights, (side(), side("b"))))

    ast.parse(text)
    assert [part for part in holds if part not in text] == []
    assert [part for part in lacks if part in text] == []


def test_a_script_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    first, other = pair(), pair(seed=1)

    path = write(first, folder, "a1")
    assert path == folder / "repro_a1.py"
    assert path.read_text(encoding="utf-8") == script(first)
    assert write(first, folder, "a1") == path
    assert write(other, folder, "a1") == folder / "repro_a1_2.py"
    assert write(other, folder, "a1") == folder / "repro_a1_2.py"
    assert path.read_text(encoding="utf-8") == script(first)
    assert len(list(folder.iterdir())) == 2


def test_names_of_checks_become_names_of_files(tmp_path: Path) -> None:
    names = ["s.yaml::m::t[p]", "s.yaml::m::t(p)", "../../up", "x" * 300, "é 😀", ""]
    paths = [write(pair(), tmp_path, name) for name in names]

    assert len(set(paths)) == len(names)
    assert all(path.parent == tmp_path and len(path.name) < 90 and path.name.isascii() for path in paths)
    assert paths[0].name.startswith("repro_s_yaml_m_t_p_")
