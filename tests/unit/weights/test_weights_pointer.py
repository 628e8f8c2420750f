import shutil

import pytest

from safemerge.errors import CheckpointError
from safemerge.weights import fingerprint, open_checkpoint

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 976\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_is_named_as_such(name, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "cloned")
    (folder / name).write_text(POINTER)
    for read in (open_checkpoint, fingerprint):
        with pytest.raises(CheckpointError, match=rf"Git LFS pointers to them \({name}\)\. Run"):
            read(folder)


def test_all_pointers_are_told_at_once(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "cloned")
    for at in range(5):
        (folder / f"model-{at}.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors and 2 more"):
        open_checkpoint(folder)


def test_an_adapter_of_pointers_is_refused_too(tiny_base, tiny_adapter, tmp_path):
    folder = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointers"):
        open_checkpoint(folder, open_checkpoint(tiny_base))


def test_files_that_nobody_reads_may_be_pointers(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "cloned")
    (folder / "pytorch_model.bin").write_text(POINTER)
    assert open_checkpoint(folder).names
