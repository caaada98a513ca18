"""Reading a model's files, and finding them without fetching or converting anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.backends import convert, packages, sources
from harness.files import ModelFiles, Tensor, find, ids_of, numbers_of, read
from harness.inputs import Model, ScriptedCompletion

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A folder of these files: JSON, or text as it stands; dots in a name stand for themselves."""

    def folder(where: str = "model", **files: Any) -> Path:
        made = tmp_path / where
        made.mkdir(parents=True)
        for name, content in {"config": {"model_type": "llama"}, **files}.items():
            file = name.replace("__", ".") if "__" in name else f"{name}.json"
            (made / file).write_text(content if isinstance(content, str) else json.dumps(content))
        return made

    return folder


def safetensors(header: dict[str, Any], length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_files_of_a_folder(write: Write) -> None:
    folder = write(generation_config={"eos_token_id": 3}, tokenizer_config={"padding_side": "left"})
    (folder / "model.safetensors").write_bytes(
        safetensors(
            {
                "__metadata__": {"format": "pt"},
                "model.embed_tokens.weight": {"dtype": "BF16", "shape": [5, 2], "data_offsets": [0, 20]},
            }
        )
    )
    found = find(Model(path=str(folder)))
    assert isinstance(found, ModelFiles)
    assert (found.where, found.model_type, found.from_hub) == (folder, "llama", False)
    assert (found.eos_ids, found.padding_side, found.embeddings) == ((3,), "left", 5)
    assert found.tensors == {"model.embed_tokens.weight": Tensor("BF16", (5, 2))}
    assert not found.broken


@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs", safetensors({}, 2**40), safetensors({"a": 1}), safetensors({})[:9], b"\xff" * 30],
)
def test_damaged_headers_hold_no_tensors(write: Write, content: bytes) -> None:
    folder = write()
    (folder / "model.safetensors").write_bytes(content)
    assert read(folder).tensors == {}


def test_broken_and_missing_files_are_told(write: Write) -> None:
    folder = write(config="{", tokenizer_config="3", chat_template="[]", special_tokens_map="\x00")
    files = read(folder)
    assert set(files.broken) == {
        "config.json",
        "tokenizer_config.json",
        "chat_template.json",
        "special_tokens_map.json",
    }
    assert files.config == {}
    (folder / "config.json").unlink()
    assert read(folder).broken["config.json"] == "there is no such file"


def test_text_that_is_no_utf8_is_told(write: Write) -> None:
    folder = write(chat_template__jinja="x")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    files = read(folder)
    assert "cannot be read" in files.broken["chat_template.jinja"]
    assert files.chat_template is None


@pytest.mark.parametrize(
    ("files", "template", "where"),
    [
        (
            {"chat_template__jinja": "own", "tokenizer_config": {"chat_template": "config"}},
            "own",
            "chat_template.jinja",
        ),
        (
            {"tokenizer_config": {"chat_template": "config"}, "chat_template": {"chat_template": "old"}},
            "config",
            "tokenizer_config.json",
        ),
        (
            {
                "tokenizer_config": {
                    "chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
                }
            },
            "d",
            "tokenizer_config.json",
        ),
        ({"chat_template": {"chat_template": "old"}}, "old", "chat_template.json"),
        ({"tokenizer_config": {"chat_template": [{"name": "rag", "template": "r"}]}}, None, ""),
        ({}, None, ""),
    ],
)
def test_which_template_counts(write: Write, files: dict[str, Any], template: str | None, where: str) -> None:
    found = read(write(**files))
    assert (found.chat_template, found.template_file) == (template, where)


def test_special_tokens_are_text_or_mappings_and_an_old_map_wins(write: Write) -> None:
    settings = {"eos_token": {"content": "</s>"}, "pad_token": "<pad>", "bos_token": None}
    found = read(write(tokenizer_config=settings, special_tokens_map={"pad_token": {"content": "<other>"}}))
    assert (found.token("eos_token"), found.token("pad_token"), found.token("bos_token")) == ("</s>", "<other>", None)
    settings["added_tokens_decoder"] = {}
    new = read(write("new", tokenizer_config=settings, special_tokens_map={"pad_token": "<other>"}))
    assert new.token("pad_token") == "<pad>"


def test_what_generate_starts_from(write: Write) -> None:
    config = {"eos_token_id": None, "temperature": 0.5, "text_config": {"eos_token_id": 7, "hidden_size": 2}}
    assert read(write(config=config)).generation == {"eos_token_id": 7, "temperature": 0.5}
    assert read(write("both", config=config, generation_config={"top_k": 3})).generation == {"top_k": 3}


@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({}, "right"),
        ({"padding_side": "left"}, "left"),
        ({"tokenizer_class": "LlamaTokenizerFast"}, "left"),
        ({"tokenizer_class": "LlamaTokenizer", "padding_side": "right"}, "right"),
    ],
)
def test_the_padding_side_without_a_word_in_tokenizer_json(write: Write, settings: dict[str, Any], side: str) -> None:
    assert read(write(tokenizer_config=settings)).padding_side == side


def test_settings_inside_tokenizer_json(write: Write) -> None:
    from tokenizers import Tokenizer, models

    folder = write(tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    made = Tokenizer(models.WordLevel({"<unk>": 0, "<fill>": 1}, unk_token="<unk>"))
    made.enable_padding(direction="left", pad_token="<fill>", pad_id=1)
    made.enable_truncation(5, direction="left")
    made.save(str(folder / "tokenizer.json"))
    found = read(folder)
    assert (found.padding_side, found.truncation_side, found.token("pad_token")) == ("left", "left", "<fill>")
    assert found.tokenizer_settings["truncation"]["max_length"] == 5


def test_limits(write: Write) -> None:
    found = read(write(config={"n_positions": 64}, tokenizer_config={"model_max_length": 1e30}))
    assert (found.context_window, found.max_length) == (64, None)
    encoder = read(write("t5", config={"n_positions": 64, "is_encoder_decoder": True}))
    assert encoder.context_window is None


def test_ids_and_versions() -> None:
    assert [ids_of(value) for value in (None, 3, [1, 2], "x", True)] == [(), (3,), (1, 2), (), ()]
    assert [numbers_of(text) for text in ("5.23.0", "5.0.0.dev0", "5.0.0rc1", "")] == [
        (5, 23, 0),
        (5, 0, 0),
        (5, 0),
        (),
    ]


# --- finding ---------------------------------------------------------------------------------------------------------


def why_not(path: str, **model: Any) -> str:
    found = find(Model(path=path, **model))
    assert isinstance(found, str), found
    return found


def test_a_scripted_model_has_no_files() -> None:
    model = Model(backend="scripted", completions=(ScriptedCompletion(text="x"),))
    assert find(model) == "a model of backend scripted has no files: nothing to look at"


def test_a_folder_that_is_not_there_is_told_with_what_is_near(write: Write) -> None:
    folder = write("checkpoint")
    told = why_not(str(folder.parent / "chekpoint"))
    assert "not looked at" in told
    assert f"Did you mean {folder}?" in told


def test_a_file_that_is_no_model(write: Write) -> None:
    assert "neither a folder nor a GGUF file" in why_not(str(write() / "config.json"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_id_is_looked_at_only_in_the_local_cache(hub: Path, write: Write) -> None:
    told = why_not("org/name", revision="v2")
    assert "is not in the local Hub cache: `hf download org/name --revision v2`" in told
    snapshot = write("hub/models--org--name/snapshots/abc")
    (hub / "models--org--name" / "refs").mkdir()
    (hub / "models--org--name" / "refs" / "main").write_text("abc\n")
    for revision in (None, "main", "abc"):
        found = find(Model(path="org/name", revision=revision))
        assert isinstance(found, ModelFiles)
        assert (found.where, found.from_hub) == (snapshot, True)
    assert "not in the local" in why_not("org/name", revision="other")


def test_the_place_in_the_hub_cache_is_where_the_library_finds_it(hub: Path, write: Write) -> None:
    import huggingface_hub

    snapshot = write("hub/models--org--name/snapshots/0123456789012345678901234567890123456789")
    (hub / "models--org--name" / "refs").mkdir()
    (hub / "models--org--name" / "refs" / "main").write_text(snapshot.name)
    by_library = huggingface_hub.snapshot_download("org/name", cache_dir=hub, local_files_only=True)
    found = find(Model(path="org/name"))
    assert isinstance(found, ModelFiles)
    assert found.where.resolve() == Path(by_library).resolve()


def test_a_gguf_is_looked_at_once_it_is_converted(tmp_path: Path, cache: Path, write: Write) -> None:
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"GGUF and the rest")
    assert "small.gguf is not converted yet: `harness run` converts it once" in why_not(str(gguf))
    digest = convert.sha256_of(gguf)
    source = {"digest": digest, "dequantised_from": "Q4_1"}
    made = write(f"cache/models/{convert._folders(digest)[0]}", source=source)
    (made / "model.safetensors").write_bytes(safetensors({}))
    found = find(Model(path=str(gguf)))
    assert isinstance(found, ModelFiles)
    assert found.where == made
    gguf.write_bytes(b"GGUF and something else")
    assert "not converted yet" in why_not(str(gguf))


def test_a_wheel_is_not_fetched(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_fetch", lambda *_: pytest.fail("it was fetched"))
    path = f"wheel:no-such-package==1.0/no_such/model.gguf#sha256={'0' * 64}"
    assert why_not(path).startswith("wheel:no-such-package==1.0/no_such/model.gguf is not fetched yet")
    kept = cache / "wheels" / ("0" * 32)
    kept.mkdir(parents=True)
    (kept / "model.gguf").write_bytes(b"GGUF")
    assert "model.gguf is not converted yet" in why_not(path)


@pytest.mark.parametrize("path", ["wheel:nonsense", "package:no_such_package/x.gguf", "package:"])
def test_paths_that_name_nothing_are_told_as_a_run_tells_them(path: str, cache: Path) -> None:
    from harness.errors import ModelUnavailable

    with pytest.raises(ModelUnavailable) as refused:
        sources.resolve(Model(path=path))
    assert why_not(path).startswith(refused.value.message.rstrip("."))
