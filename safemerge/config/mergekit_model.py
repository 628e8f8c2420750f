"""How mergekit names a model: ``folder``, ``folder+adapter``, or the same as a mapping."""

from __future__ import annotations

import re
from posixpath import normpath
from typing import Any, NamedTuple, Self

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""What a hub repository's name looks like."""


class MergekitModel(NamedTuple):
    """A model's folder or hub id, or an adapter's and its model's."""

    path: str
    """Folder or hub id of the weights: the adapter's, if there is one."""
    host: str | None = None
    """The model that the adapter is added to; None for a whole model."""
    revision: str | None = None
    """Branch, tag or commit of `path` on the hub."""
    host_revision: str | None = None
    """The same of `host`."""

    @classmethod
    def parse(cls, given: object) -> Self:
        """Read a model's name as mergekit has it, where ``+`` and ``@`` have a meaning in text.

        Raises:
            ValueError: With a rule and advice, if it is malformed, has a revision of a folder, or
                names an architecture.
        """
        if isinstance(given, str):
            parts = [_place(part) for part in given.split("+")]
            if len(parts) > 2:
                raise ValueError("must be a folder, or folder+adapter", "Change")
        else:
            if not isinstance(given, dict) or given.get("model") is None:
                raise ValueError("must be a model's folder", "Change")
            for key in sorted(map(str, set(given) - {"model", "lora"})):
                if given.get(key) is not None:
                    raise ValueError(f"{key} is not supported", f"Drop {key} from")
            named = [given.get(key) for key in ("model", "lora")]
            parts = [_place(item) for item in named if item is not None]
        (path, revision), *host = reversed(parts)
        if not host:
            return cls(path, revision=revision)
        return cls(path, host[0][0], revision, host[0][1])

    @property
    def under(self) -> MergekitModel | None:
        """The model that an adapter is added to; None for a whole model."""
        return None if self.host is None else MergekitModel(self.host, revision=self.host_revision)

    @property
    def text(self) -> str:
        """The name in one line, for messages."""
        own = self.path if self.revision is None else f"{self.path}@{self.revision}"
        return own if self.under is None else f"{self.under.text}+{own}"

    def source(self) -> dict[str, str]:
        """Return where it is, as a recipe's reference says it: ``path``, or ``hub``."""
        if self.revision is None:
            return {"path": self.path}
        return {"hub": self.path, "revision": self.revision}

    def written(self) -> str | dict[str, Any]:
        """Return the name for a mergekit file: text, unless a folder has a sign of mergekit's."""
        parts = [self.path] if self.host is None else [self.host, self.path]
        if not any(sign in part for part in parts for sign in "+@"):
            return self.text
        revisions = [self.revision] if self.host is None else [self.host_revision, self.revision]
        named = [
            {"path": part} if revision is None else {"path": part, "revision": revision}
            for part, revision in zip(parts, revisions, strict=True)
        ]
        return dict(zip(("model", "lora"), named, strict=False))


def _place(given: object) -> tuple[str, str | None]:
    """Return folder or hub id, and revision."""
    revision: object = None
    if isinstance(given, dict):
        if set(given) - {"path", "revision"}:
            raise ValueError("must be a model's folder", "Change")
        revision = given.get("revision")
        given = given.get("path")
    elif isinstance(given, str) and "@" in given:
        given, _, revision = given.partition("@")
    if not isinstance(given, str) or not given.strip():
        raise ValueError("must be a model's folder", "Change")
    if revision is None:
        return normpath(given), None
    if not isinstance(revision, str) or not revision.strip() or not HUB_ID.fullmatch(given):
        raise ValueError(
            "a revision (after @) is one of a hub repository, ORG/NAME",
            "For a folder with @ in its name write 'model: {model: {path: FOLDER}}', else change",
        )
    return given, revision
