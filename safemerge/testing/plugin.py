"""Packages that add something to safemerge, written for tests."""

from __future__ import annotations

from pathlib import Path


def write_package(folder: Path, name: str, source: str, entry_points: dict[str, str]) -> None:
    """Write a package of one module, as an installer leaves it.

    Args:
        folder: A folder of Python's path, such as what ``pip install --target`` fills.
        name: Name of the package and of its module; its version is 1.0.
        source: The module's text.
        entry_points: ``module:name`` by ``group name``, parted by a space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for key, value in entry_points.items():
        group, _, point = key.partition(" ")
        lines += [f"[{group}]", f"{point} = {value}", ""]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
