"""The full declaration of one merge: base, experts, method, coefficients, dtype, seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from safemerge.config.base import StrictModel, digest
from safemerge.config.checkpoint import CheckpointRef, Name
from safemerge.config.problems import did_you_mean

DEFAULT_GROUP = "default"
"""The key that covers every tensor no layer group matches."""


def _number_or_mapping(value: object) -> str:
    return "mapping" if isinstance(value, dict) else "number"


# A tagged union reports the problem of the one form that was meant, not of both.
_EITHER = Discriminator(_number_or_mapping)

Coefficient = Annotated[
    Annotated[float, Tag("number")] | Annotated[dict[str, float], Tag("mapping")], _EITHER
]
"""One number for the whole model, or one per layer group (key ``default`` for the rest)."""

Density = Annotated[float, Field(gt=0.0, le=1.0)]
Position = Annotated[float, Field(ge=0.0, le=1.0)]


class LayerGroup(StrictModel):
    """A named set of tensors that share coefficients: a layer range or name patterns."""

    name: Name
    layers: str | None = Field(default=None, pattern=r"^\d+(-\d+)?$")
    """Decoder layers, 0-indexed and inclusive, e.g. ``0-9``."""
    tensors: list[str] | None = Field(default=None, min_length=1)
    """Glob patterns on tensor names, e.g. ``*.self_attn.*``."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.layers is None) == (self.tensors is None):
            raise ValueError("exactly one of layers, tensors must be given. Keep one.")
        if self.name == DEFAULT_GROUP:
            raise ValueError(
                f"the name '{DEFAULT_GROUP}' stands for the rest; got it for a group."
            )
        if self.layers is not None and self.layer_range[0] > self.layer_range[1]:
            raise ValueError(f"first layer must not exceed the last; got {self.layers!r}.")
        return self

    @property
    def layer_range(self) -> tuple[int, int]:
        """First and last layer, inclusive; only for a group given by layers."""
        first, _, last = (self.layers or "").partition("-")
        return int(first), int(last or first)


class _Method(StrictModel):
    """What every merge method shares: which fields are coefficients."""

    def coefficients(self) -> Iterator[tuple[str, Coefficient]]:
        """Yield (dotted field, coefficient) for every layer-wise coefficient."""
        for field in ("weights", "t", "lambda_"):
            value = getattr(self, field, None)
            if value is None:
                continue
            label = field.rstrip("_")
            if field == "weights":
                yield from ((f"{label}.{name}", item) for name, item in value.items())
            else:
                yield label, value

    def model_names(self) -> frozenset[str]:
        """Names of the models that the method's parameters mention."""
        return frozenset(getattr(self, "weights", {}))


class Linear(_Method):
    """Weighted mean of weights, a model soup: sum of w_i theta_i (arXiv:2203.05482)."""

    name: Literal["linear"]
    weights: dict[str, Coefficient] = Field(min_length=1)
    """Weight by model name, ``base`` model included by its own name; unnamed models get 0."""
    normalize: bool = True
    """Divide by the sum of the weights, per layer group."""


class Slerp(_Method):
    """Spherical interpolation between two models, per tensor (Shoemake 1985)."""

    name: Literal["slerp"]
    models: list[Name] = Field(min_length=2, max_length=2)
    """The models at t = 0 and t = 1; each is the base or an expert."""
    t: Annotated[
        Annotated[Position, Tag("number")] | Annotated[dict[str, Position], Tag("mapping")],
        _EITHER,
    ]
    """Position between the two, in [0, 1]."""

    def model_names(self) -> frozenset[str]:
        """Names of the two interpolated models."""
        return frozenset(self.models)


class TaskArithmetic(_Method):
    """base + lambda * sum of w_i tau_i; negative weights negate (arXiv:2212.04089)."""

    name: Literal["task_arithmetic"]
    weights: dict[str, Coefficient] = Field(min_length=1)
    """Weight by expert name; experts left out get 0."""
    lambda_: Coefficient = Field(default=1.0, alias="lambda")
    """Scale of the merged task vector, usually in [0, 2]."""


class _Sparse(_Method):
    weights: dict[str, Coefficient] = Field(min_length=1)
    """Weight by expert name; experts left out get 0."""
    density: Annotated[
        Annotated[Density, Tag("number")] | Annotated[dict[str, Density], Tag("mapping")],
        _EITHER,
    ] = 0.5
    """Fraction of each task vector's entries kept, in (0, 1]; one number or one per expert."""
    lambda_: Coefficient = Field(default=1.0, alias="lambda")
    """Scale of the merged task vector, usually in [0, 2]."""


class Ties(_Sparse):
    """Trim by magnitude, elect a sign, mean over the agreeing (arXiv:2306.01708)."""

    name: Literal["ties"]


class DareLinear(_Sparse):
    """Drop entries at random, rescale by 1/density, add up (arXiv:2311.03099)."""

    name: Literal["dare_linear"]


class DareTies(_Sparse):
    """Drop and rescale as DARE, then elect signs as TIES (arXiv:2311.03099)."""

    name: Literal["dare_ties"]


Method = Annotated[
    Linear | Slerp | TaskArithmetic | Ties | DareLinear | DareTies,
    Field(discriminator="name"),
]


class MergeRecipe(StrictModel):
    """Full declaration of one merge; its weights are the *candidate*."""

    base: CheckpointRef
    """Checkpoint that all task vectors are measured from; also gives config and tokenizer."""
    experts: list[CheckpointRef] = Field(min_length=1)
    """Checkpoints that are merged, with unique names."""
    method: Method
    layer_groups: list[LayerGroup] = Field(default_factory=list)
    """Groups for layer-wise coefficients; the first group that matches a tensor holds."""
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    """Type of the merged weights; arithmetic is always in float32."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the random masks (DARE)."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        problems = [*self._name_problems(), *self._group_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _name_problems(self) -> Iterator[str]:
        names = [item.name for item in self.checkpoints]
        if len(set(names)) != len(names):
            yield f"names of base and experts must be unique; got {names}."
        known = [name for name in names if name != self.base.name]
        if isinstance(self.method, Linear | Slerp):
            known.append(self.base.name)
        for name in sorted(self.method.model_names() - set(known)):
            yield f"method: names an unknown model; got {name!r}. {did_you_mean(name, known)}"
        density = getattr(self.method, "density", None)
        if isinstance(density, dict) and set(density) != set(self.method.model_names()):
            yield (
                f"method.density: must name the experts of method.weights, "
                f"{sorted(self.method.model_names())}; got {sorted(density)}."
            )

    def _group_problems(self) -> Iterator[str]:
        groups = [group.name for group in self.layer_groups]
        if len(set(groups)) != len(groups):
            yield f"layer_groups: names must be unique; got {groups}."
        for where, value in self.method.coefficients():
            if not isinstance(value, dict):
                continue
            for name in sorted(set(value) - set(groups) - {DEFAULT_GROUP}):
                yield (
                    f"method.{where}: names an unknown layer group; got {name!r}. "
                    f"{did_you_mean(name, [*groups, DEFAULT_GROUP])}"
                )
            missing = [name for name in groups if name not in value]
            if DEFAULT_GROUP not in value and (missing or not value):
                yield (
                    f"method.{where}: must name every layer group or '{DEFAULT_GROUP}'; "
                    f"missing {(missing or [DEFAULT_GROUP])[0]!r}."
                )

    @property
    def checkpoints(self) -> tuple[CheckpointRef, ...]:
        """Base first, then the experts in their declared order."""
        return (self.base, *self.experts)

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative paths are taken from `folder`."""
        return self.model_copy(
            update=changed_models(self.checkpoints, lambda ref: ref.located(folder))
        )

    def with_checkpoints(self, by_name: dict[str, CheckpointRef]) -> Self:
        """Return a copy whose checkpoints are replaced by name."""
        return self.model_copy(
            update=changed_models(self.checkpoints, lambda ref: by_name[ref.name])
        )

    @property
    def digest(self) -> str:
        """The candidate's digest: everything its weights depend on, and nothing else.

        Checkpoints count by fingerprint where known (so a moved folder is the same candidate),
        else by their reference.
        """
        document: dict[str, Any] = self.resolved()
        for item in (document["base"], *document["experts"]):
            if item["digest"] is not None:
                for key in ("path", "package", "align", "finetune"):
                    del item[key]
        return digest(document)


def changed_models(
    refs: Sequence[CheckpointRef], change: Callable[[CheckpointRef], CheckpointRef]
) -> dict[str, Any]:
    """Return the fields ``base`` and ``experts`` of a recipe or a study, for `model_copy`.

    Args:
        refs: Base first, then the experts; they stay as they are.
        change: Gives the new reference for each.
    """
    base, *experts = map(change, refs)
    return {"base": base, "experts": experts}
