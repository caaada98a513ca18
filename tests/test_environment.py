import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import environment


def test_says_python_and_the_installed_versions():
    told = environment.describe()
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["libraries"]["numpy"] == metadata.version("numpy")
    assert told["libraries"]["torch"] == metadata.version("torch")
    assert told["cores"] == os.cpu_count()
    assert told["cpu"]


def test_is_json_data():
    told = environment.describe()
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_imports_nothing_heavy():
    code = (
        "import sys, harness.store, harness.environment; told = harness.environment.describe();"
        "assert told['torch'] == {}, told['torch'];"
        "print([name for name in ('torch', 'transformers', 'pandas', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tells_only_harmless_variables(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_secret")
    monkeypatch.setenv("TRANSFORMERS_SECRET", "hf_secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = environment.describe()
    assert told["variables"]["HF_HUB_OFFLINE"] == "1"
    assert "hf_secret" not in json.dumps(told)


def fake_torch(has_cuda):
    class Matmul:
        @property
        def allow_tf32(self):
            raise RuntimeError("a mix of old and new settings")

    cuda = SimpleNamespace(
        is_available=lambda: has_cuda, device_count=lambda: 2, get_device_name=lambda index: f"GPU {index}"
    )
    cudnn = SimpleNamespace(version=lambda: 90100, allow_tf32=True, deterministic=False)
    return SimpleNamespace(
        cuda=cuda,
        version=SimpleNamespace(cuda="12.8"),
        backends=SimpleNamespace(cuda=SimpleNamespace(matmul=Matmul()), cudnn=cudnn),
        get_num_threads=lambda: 3,
        are_deterministic_algorithms_enabled=lambda: True,
        get_float32_matmul_precision=lambda: "highest",
    )


def test_asks_torch_where_it_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch(has_cuda=False))
    assert environment.describe()["torch"] == {
        "threads": 3,
        "deterministic_algorithms": True,
        "float32_matmul_precision": "highest",
        "cuda": False,
    }


def test_a_setting_that_cannot_be_read_does_not_end_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch(has_cuda=True))
    told = environment.describe()["torch"]
    assert told["devices"] == ["GPU 0", "GPU 1"]
    assert told["cuda_version"] == "12.8"
    assert told["allow_tf32"] == "unknown (RuntimeError)"
    assert told["cudnn_allow_tf32"] is True


@pytest.mark.parametrize(
    ("line", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (x@y)", "570.86.15"),
        ("nothing of the kind", ""),
    ],
)
def test_reads_the_driver_version(tmp_path, line, driver):
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
    assert environment._driver(tmp_path / "version") == driver
    assert environment._driver(tmp_path / "absent") == ""


def test_reads_the_cpu_model(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\n")
    assert environment._cpu_model(tmp_path / "cpuinfo") == "Fast CPU @ 3 GHz"
    assert isinstance(environment._cpu_model(tmp_path / "absent"), str)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_tells_the_commit_and_whether_files_were_changed(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "suite.yaml").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.chdir(tmp_path)
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert environment.describe()["git"] == {"commit": commit, "dirty": False}
    (tmp_path / "suite.yaml").write_text("two")
    assert environment.describe()["git"] == {"commit": commit, "dirty": True}


def test_no_repository_and_no_git_are_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert environment.describe()["git"] == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.describe()["git"] == {}
