import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from safemerge.config.base import DIGEST_LENGTH
from safemerge.errors import CheckpointError
from safemerge.testing.pico import change_config
from safemerge.weights import cache_dir, fingerprint


@pytest.fixture
def copy(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "copy")


def test_a_moved_checkpoint_keeps_its_fingerprint(tiny_base, copy):
    assert fingerprint(copy) == fingerprint(tiny_base)
    assert len(fingerprint(copy)) == DIGEST_LENGTH
    assert int(fingerprint(copy), 16) >= 0


def test_layout_of_the_config_and_the_tokenizer_do_not_count(copy):
    before = fingerprint(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=7))
    (copy / "tokenizer.json").unlink()
    assert fingerprint(copy) == before


def test_weights_and_config_count(copy):
    before = fingerprint(copy)
    change_config(copy, rms_norm_eps=1e-3)
    changed_config = fingerprint(copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1.0
    save_file(tensors, copy / "model.safetensors")
    assert len({before, changed_config, fingerprint(copy)}) == 3


def test_adapters_count_by_factors_and_adapter_config(tiny_base, tiny_adapter, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    before = fingerprint(adapter)
    assert before == fingerprint(tiny_adapter) != fingerprint(tiny_base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    assert fingerprint(adapter) != before


def test_a_second_call_reads_no_weights(copy, monkeypatch):
    before = fingerprint(copy)

    opened = []
    original = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, *rest, **more: opened.append(self) or original(self, *rest, **more),
    )
    assert fingerprint(copy) == before
    assert not [path for path in opened if path.suffix == ".safetensors"]


def test_a_changed_file_of_the_same_size_is_read_again(copy):
    before = fingerprint(copy)
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(0, 12345))
    assert fingerprint(copy) != before


def test_a_damaged_cache_entry_is_computed_again(copy):
    before = fingerprint(copy)
    entries = list((cache_dir() / "fingerprints").iterdir())
    assert len(entries) == 1
    entries[0].write_text('{"file": 3}')
    assert fingerprint(copy) == before


def test_a_folder_without_weights_has_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"must hold model\.safetensors or"):
        fingerprint(tmp_path)


@pytest.mark.parametrize("pickled", [True, False])
def test_an_adapter_without_safetensors_weights_is_refused(tiny_adapter, tmp_path, pickled):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin") if pickled else weights.unlink()
    words = r"pickle checkpoint \(adapter_model\.bin\)" if pickled else "got no weights"
    with pytest.raises(CheckpointError, match=words):
        fingerprint(adapter)
