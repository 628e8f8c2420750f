"""How mergekit names a model: ``folder``, ``folder+adapter``, or the same as a mapping."""

from __future__ import annotations

from posixpath import normpath
from typing import Any, NamedTuple, Self

_REVISION = "is not supported: weights are read from a folder as it is"
_NAMING = "Download that revision, and name its folder as"


class MergekitModel(NamedTuple):
    """A model's folder, or an adapter's and its model's."""

    path: str
    """Folder of the weights: the adapter's, if there is one."""
    host: str | None = None
    """Folder of the model that the adapter is added to; None for a whole model."""

    @classmethod
    def parse(cls, given: object) -> Self:
        """Read a model's name as mergekit has it, where ``+`` and ``@`` have a meaning in text.

        Raises:
            ValueError: With a rule and advice, if it is malformed, or names a revision or an
                architecture.
        """
        if isinstance(given, str):
            parts = [_folder(part) for part in given.split("+")]
            if len(parts) > 2:
                raise ValueError("must be a folder, or folder+adapter", "Change")
            return cls(*reversed(parts))
        if not isinstance(given, dict) or given.get("model") is None:
            raise ValueError("must be a model's folder", "Change")
        for key in sorted(map(str, set(given) - {"model", "lora"})):
            if given.get(key) is not None:
                raise ValueError(f"{key} is not supported", f"Drop {key} from")
        parts = [_folder(given[key]) for key in ("lora", "model") if given.get(key) is not None]
        return cls(*parts)

    @property
    def text(self) -> str:
        """The name in one line, for messages."""
        return self.path if self.host is None else f"{self.host}+{self.path}"

    def written(self) -> str | dict[str, Any]:
        """Return the name for a mergekit file: text, unless a folder has a sign of mergekit's."""
        parts = [self.path] if self.host is None else [self.host, self.path]
        if not any(sign in part for part in parts for sign in "+@"):
            return "+".join(parts)
        return dict(zip(("model", "lora"), ({"path": part} for part in parts), strict=False))


def _folder(given: object) -> str:
    if isinstance(given, dict):
        if set(given) - {"path", "revision"}:
            raise ValueError("must be a model's folder", "Change")
        if given.get("revision") is not None:
            raise ValueError(f"revision {_REVISION}", _NAMING)
        path = given.get("path")
        if not isinstance(path, str) or not path.strip():
            raise ValueError("must be a model's folder", "Change")
        return normpath(path)
    if not isinstance(given, str) or not given.strip():
        raise ValueError("must be a model's folder", "Change")
    if "@" in given:
        raise ValueError(
            f"a revision (after @) {_REVISION}",
            "For a folder with @ in its name write 'model: {model: {path: FOLDER}}', else "
            "download that revision, and name its folder as",
        )
    return normpath(given)
