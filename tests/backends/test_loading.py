"""What is told of a target once it is loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.backends import loading
from harness.inputs import Model
from harness.record import Target, TargetFacts


def facts(folder: Path, level: str = "none") -> TargetFacts:
    target = Target("tiny", "tiny", Model(path=str(folder), dtype="float32", device="cpu"), level)
    return loading.open_target(target, lambda _: None).facts


def changed(folder: Path, to: Path, change: Callable[[dict[str, int]], object]) -> Path:
    shutil.copytree(folder, to)
    file = to / "tokenizer.json"
    told = json.loads(file.read_text())
    change(told["model"]["vocab"])
    file.write_text(json.dumps(told))
    return to


def test_a_tokenizer_is_known_by_its_vocabulary(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny()
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == 95
    wanted = hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()[:16]

    def swap(words: dict[str, int]) -> None:
        words["w1"], words["w2"] = words["w2"], words["w1"]

    def reorder(words: dict[str, int]) -> None:
        words["w1"] = words.pop("w1")

    assert facts(folder).tokenizer_digest == wanted
    assert facts(folder, "nf4").tokenizer_digest == wanted
    assert facts(changed(folder, tmp_path / "reordered", reorder)).tokenizer_digest == wanted
    assert facts(changed(folder, tmp_path / "swapped", swap)).tokenizer_digest != wanted


def test_an_added_token_makes_another_vocabulary(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "added"
    shutil.copytree(tiny(), folder)
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["w1000"])
    words.save_pretrained(folder)

    assert facts(folder).tokenizer_digest != facts(tiny()).tokenizer_digest


def test_memory_is_told_from_what_was_held_before(tiny: Callable[..., Path]) -> None:
    large = tiny(hidden_size=512, intermediate_size=4096)
    facts(large)
    told = facts(large)

    assert told.weight_bytes > 50e6
    assert told.held_before_bytes > told.weight_bytes  # Python, torch and transformers are there already
    assert 0.9 * told.weight_bytes < told.load_peak_bytes < 1.5 * told.weight_bytes
