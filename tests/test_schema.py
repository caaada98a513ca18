"""The JSON Schema of suite files: it fits what `load` accepts, describes every key, and is shipped as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from harness.errors import SuiteError
from harness.load import json_schema, load

ROOT = Path(__file__).parents[1]


def suite(**changes: Any) -> dict[str, Any]:
    """A small suite, with other values for some of its keys."""
    test = {"name": "t", "prompts": ["p"], "expect": {"stops_at_eos": True}}
    return {"suite": "s", "models": {"m": "some/path"}, "prompts": {"p": "text"}, "tests": [test], **changes}


def expecting(**expect: Any) -> dict[str, Any]:
    return suite(tests=[{"name": "t", "prompts": ["p"], "expect": expect}])


def with_test(**changes: Any) -> dict[str, Any]:
    return suite(tests=[{"name": "t", "prompts": ["p"], "expect": {"contains": "x"}, **changes}])


RIGHT = [
    suite(),
    suite(models={"m": {"path": "x", "dtype": "bfloat16", "device": "cuda:1"}}),
    suite(models={"m": {"backend": "scripted", "completions": [{"text": "hi", "margin": 0.5}]}}),
    suite(prompts={"p": {"messages": [{"role": "user", "content": "hi"}]}}),
    suite(prompts={"p": {"text": "{x}", "rows": [{"id": "a", "x": 1}, {"x": "b"}]}}),
    suite(quantization=["none", "int8", "nf4"], baseline={"quantization": "none"}),
    suite(generation={"greedy": {"do_sample": False}, "warm": {"do_sample": True, "temperature": 1, "top_p": 0.9}}),
    suite(dtype=["float32"], attention=["eager"], batch_size=4, top_k_logprobs=5, description="what for"),
    expecting(deterministic=True),
    expecting(deterministic={"runs": 3}, pass_rate=0.5),
    expecting(padding_invariant=True, batch_invariant=True),
    expecting(padding_invariant={}, batch_invariant={"sizes": [1, 4]}),
    expecting(new_tokens=5),
    expecting(new_tokens={"min": 3, "max": 40}),
    expecting(contains="text", not_contains=["I'm sorry", "As an AI"]),
    expecting(contains={"texts": "text", "ignore_case": True}),
    expecting(regex=r"\{.*\}", equals="x"),
    expecting(regex={"pattern": "x"}, equals={"text": "x", "strip": False}),
    expecting(json_schema={"type": "object", "required": ["name"]}),
    with_test(only={"quantization": "nf4"}),
    with_test(only={"quantization": ["int8", "nf4"], "device": ["cuda"], "dtype": "float16"}),
    with_test(xfail=[{"quantization": "nf4", "prompt": "p", "reason": "rambles on"}], marks=["quality"]),
    with_test(description="what for", generation="greedy"),
]

WRONG = [
    suite(modles={}),
    suite(models={}),
    suite(models={"m": {"path": "x", "revison": "a"}}),
    suite(models={"bad name": "x"}),
    suite(models={"m": 5}),
    suite(models={"m": {"path": "x", "revision": None}}),
    suite(prompts={"p": {"txt": "x"}}),
    suite(prompts={"p": {"messages": [{"role": "me", "content": "x"}]}}),
    suite(generation={"warm": {"max_length": 5}}),
    suite(generation={"warm": {"do_sample": True, "temperature": 0}}),
    suite(generation={"warm": {"do_sample": True, "top_p": 1.5}}),
    suite(batch_size=0),
    suite(tests=[]),
    {"suite": "s"},
    expecting(contans="x"),
    expecting(contains=5),
    expecting(contains=[]),
    expecting(contains={"texts": "x", "ignorecase": True}),
    expecting(contains=None),
    expecting(deterministic=False),
    expecting(deterministic={"run": 3}),
    expecting(new_tokens=True),
    expecting(new_tokens="5"),
    expecting(json_schema=5),
    expecting(pass_rate=2),
    with_test(prompts="p"),
    with_test(only={"quantisation": "nf4"}),
    with_test(xfail=[{"quantization": "nf4"}]),
]


def shown(value: dict[str, Any]) -> str:
    return json.dumps({key: item for key, item in value.items() if item != suite().get(key)})


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json_schema())


@pytest.mark.parametrize("data", RIGHT, ids=shown)
def test_the_schema_accepts_what_load_accepts(
    data: dict[str, Any], validator: Draft202012Validator, tmp_path: Path
) -> None:
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(data))
    assert load(tmp_path / "suite.yaml").suite.suite == "s"
    assert list(validator.iter_errors(data)) == []


@pytest.mark.parametrize("data", WRONG, ids=shown)
def test_the_schema_refuses_what_load_refuses(
    data: dict[str, Any], validator: Draft202012Validator, tmp_path: Path
) -> None:
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SuiteError):
        load(tmp_path / "suite.yaml")
    assert not validator.is_valid(data)


def test_a_suite_that_extends_another_need_not_be_whole(validator: Draft202012Validator) -> None:
    assert validator.is_valid({"suite": "s", "extends": "other.yaml", "models": {"m": {"dtype": "float32"}}})


def properties(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property that the schema names, at any depth."""
    if isinstance(schema, list):
        for item in schema:
            yield from properties(item, place)
    if isinstance(schema, dict):
        for name, value in schema.get("properties", {}).items():
            yield f"{place}.{name}", value
        for key, value in schema.items():
            yield from properties(value, f"{place}.{key}")


def test_every_key_has_a_description() -> None:
    found = dict(properties(json_schema()))
    assert len(found) > 60
    assert [place for place, schema in found.items() if not schema.get("description")] == []


def test_the_schema_is_valid_2020_12() -> None:
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("file", ["harness/suite.schema.json", "suites/suite.schema.json"])
def test_the_shipped_schema_is_fresh(file: str) -> None:
    expected = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert (ROOT / file).read_text(encoding="utf-8") == expected, f"run `harness schema > {file}`"
