"""Shards of a model and their index: which files hold the weights, and which are leftovers."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from safemerge.errors import CheckpointError

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"
_MAX_BYTES = 1024
"""A pointer is smaller, by Git LFS's specification."""

_READ = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken", ".codes")
"""Endings of the files of a model or an adapter that are read or copied."""

_NUM_EXAMPLES = 3


def check_no_pointers(folder: Path) -> None:
    """Refuse a model's or an adapter's folder in which files are Git LFS pointers.

    Args:
        folder: The folder; its subfolders are not looked at.

    Raises:
        CheckpointError: If a file that would be read or copied is one; all are named.
    """
    found = sorted(
        file.name for file in folder.iterdir() if file.suffix in _READ and _is_pointer(file)
    )
    if found:
        more = len(found) - _NUM_EXAMPLES
        named = ", ".join(found[:_NUM_EXAMPLES]) + (f" and {more} more" if more > 0 else "")
        raise CheckpointError(
            f"{folder}: files must be there themselves; got Git LFS pointers to them ({named}). "
            f"Run `git lfs pull` there, or download the model with `hf download`."
        )


def _is_pointer(file: Path) -> bool:
    try:
        if not file.is_file() or file.stat().st_size >= _MAX_BYTES:
            return False
        with file.open("rb") as stream:
            return stream.read(len(_FIRST_LINE)) == _FIRST_LINE
    except OSError:
        return False  # whoever reads the file says what is wrong with it


SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_PICKLE_PATTERNS = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "adapter_model.bin")
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_NUM_EXAMPLES = 3


def shard_files(index: Path, shards: Collection[str]) -> tuple[Path, ...]:
    """Return the files that an index names, sorted, after checking that they are the weights.

    Args:
        index: The index file.
        shards: File names that it maps tensors to.

    Raises:
        CheckpointError: If a ``model.safetensors`` lies beside them, which transformers would
            load instead and vLLM would not, or if a shard is missing.
    """
    folder, names = index.parent, sorted(set(shards))
    if (folder / SINGLE_FILE).is_file() and names != [SINGLE_FILE]:
        there = [name for name in names if (folder / name).is_file()]
        raise CheckpointError(
            f"{folder}: weights must be {SINGLE_FILE} or the shards of an index; got both "
            f"{SINGLE_FILE} and {INDEX_FILE} ({len(there)} of its {len(names)} shards are there): "
            f"one is left from an earlier save. Delete the index and its shards if {SINGLE_FILE} "
            f"is the newer, else {SINGLE_FILE}."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: every shard it names must exist; got no {_listed(missing)} "
            f"({len(missing)} of {len(names)} shards missing). Copy or download them."
        )
    return tuple(folder / name for name in names)


def check_index(
    index: Path,
    weight_map: Mapping[str, str],
    file_by_name: Mapping[str, Path],
    *,
    may_lack: Callable[[str], bool],
) -> None:
    """Check that every tensor is in the shard that the index names.

    Args:
        index: The index file, for messages.
        weight_map: Shard by tensor name, as the index has it.
        file_by_name: File in which each tensor is.
        may_lack: Tells whether a tensor that no file has may be named all the same.

    Raises:
        CheckpointError: If a tensor is elsewhere, or in none.
    """
    for name, shard in weight_map.items():
        found = file_by_name.get(name)
        if found is None and may_lack(name):
            continue
        if found is None or found.name != shard:
            raise CheckpointError(
                f"{index}, tensor '{name}': must be in the shard the index names; got '{shard}', "
                f"found in '{found.name if found else 'none'}'. Save the checkpoint again."
            )


def refuse_pickle(folder: Path, *, wanted: str) -> None:
    """Raise the error for a folder without the safetensors weights that are wanted.

    Raises:
        CheckpointError: Always; it says so if only pickle or GGUF files, shards without their
            index or safetensors of another name are there.
    """
    pickles = sorted({file.name for pattern in _PICKLE_PATTERNS for file in folder.glob(pattern)})
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    packed = sorted(file.name for file in folder.glob("*.gguf"))
    if others and all(_SHARD.search(name) for name in others):
        raise CheckpointError(
            f"{folder}: shards need their index, {INDEX_FILE}; got {_listed(others)} without it. "
            f"Copy or download the index."
        )
    if others:
        raise CheckpointError(
            f"{folder}: must hold {wanted}; got {_listed(others)}, which transformers does not "
            f"load. Check the path, or save the model with save_pretrained."
        )
    if pickles:
        raise CheckpointError(
            f"{folder}: weights must be safetensors; got a pickle checkpoint "
            f"({', '.join(pickles[:3])}), which can run code when loaded. Convert it to "
            f"safetensors with save_pretrained in a sandbox."
        )
    if packed:
        raise CheckpointError(
            f"{folder}: weights must be safetensors; got GGUF ({_listed(packed)}), which is "
            f"quantised. Use the model that it was made from."
        )
    raise CheckpointError(
        f"{folder}: must hold {wanted}; got no weights. Check the path or save the model again."
    )


def _listed(names: Collection[str]) -> str:
    first = ", ".join(f"'{name}'" for name in list(names)[:_NUM_EXAMPLES])
    more = len(names) - _NUM_EXAMPLES
    return f"{first} and {more} more" if more > 0 else first
