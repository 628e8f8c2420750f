"""Git LFS pointers: files that were not downloaded, only named."""

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
