"""Scripts of failures, read without running them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from harness.repro import Output, Pinned, Reproduction, Scores, Side, Weights
from harness.repro_script import script, write

NASTY = 'a "quoted" \'text\'\nwith lines\r, \\ backslashes, {braces}, 😀, \u2028, \u202e and """'
GREEDY = {"do_sample": False, "max_new_tokens": 40, "min_new_tokens": 30, "repetition_penalty": 1.2}
PROMPT = tuple(range(10, 30))


def side(name: str = "alone", rows: Any = (PROMPT,), arguments: Any = GREEDY, **fields: Any) -> Side:
    return Side(name, rows, 0, arguments, **fields)


def pair(**fields: Any) -> Reproduction:
    return Reproduction(Weights("model"), (side(), side("in a batch", ((5, 6), PROMPT), row=1, **fields)))


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
    one = Reproduction(weights, (side(NASTY, arguments=arguments),), Pinned((1, 2)), shows=NASTY)

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
    rows = (PROMPT, (50,) * 8)
    made = side("padded", rows, row=1, padding="right", attention_mask=False, attention="eager", seed=7)
    held = constants(script(Reproduction(Weights("model"), (side(), made))))

    assert held["CALLS"]["padded"] == {
        "rows": [list(PROMPT), [50] * 8],
        "pad_token_id": 0,
        "arguments": GREEDY,
        "row": 1,
        "padding": "right",
        "attention_mask": False,
        "seed": 7,
        "attention": "eager",
    }
    assert "attention" not in held["CALLS"]["alone"]
    assert (held["PINNED"], held["LOGPROBS"]) == (None, [])


def test_the_source_is_short_and_says_what_it_shows() -> None:
    shows = "right-padded, the tokens differ from those alone at token 0. " * 4
    long = Reproduction(Weights("model"), (side(rows=(tuple(range(1000, 1200)),)), side("b")), shows=shows)
    lines = script(long).splitlines()

    assert max(map(len, lines)) <= 120
    assert len(lines) < 165
    comments = [line[2:] for line in lines if line.startswith("# ")]
    assert " ".join(comments) == shows.strip()
    imported = {name.split(".")[0] for node in ast.parse("\n".join(lines)).body for name in _imported(node)}
    assert imported == {"sys", "torch", "transformers"}


@pytest.mark.parametrize("shows", ["", "short", NASTY, "stuck from token 3 on: 'w1 w2' 16 times in a row, " * 5])
def test_of_an_output_the_sentence_is_data(shows: str) -> None:
    said = Output(((4, 5), (6,)), 1)
    text = script(Reproduction(Weights("model"), (side(NASTY),), said, shows))
    held = constants(text)

    assert (held["OUTPUT"], held["COMPARED"], held["WHY"]) == ([[4, 5], [6]], 1, shows)
    assert list(held["CALLS"]) == [NASTY]
    assert max(map(len, text.splitlines())) <= 120 or shows == NASTY
    assert "PINNED" not in text


def test_of_scores_nothing_is_generated() -> None:
    recorded = Scores((4, 5), (((4, -0.5), (9, -2.0)), ((5, -0.25),)), 0.125)
    text = script(Reproduction(Weights("model"), (side(rows=(PROMPT, (1, 2)), row=1),), recorded, "moved"))
    held = constants(text)

    assert held["PROMPT"] == [1, 2]
    assert held["TOKENS"] == [4, 5]
    assert held["RECORDED"] == [{4: -0.5, 9: -2.0}, {5: -0.25}]
    assert held["LIMIT"] == 0.125
    assert "# moved\n" in text
    assert "generate" not in text


def test_many_scores_stay_within_the_line() -> None:
    likely = tuple((n, -n / 7) for n in range(100, 140))
    text = script(Reproduction(Weights("model"), (side(),), Scores((1,), (likely,), 0.125)))

    assert max(map(len, text.splitlines())) <= 120
    assert constants(text)["RECORDED"] == [dict(likely)]


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
