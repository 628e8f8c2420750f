"""Coefficients of task vectors as a table of numbers, experts by groups, and back to a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from safemerge.config.coefficient import DEFAULT_GROUP, Coefficient, LayerGroup
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError
from safemerge.merge.coefficient import group_of
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.optimize.spec import CmaEs, GradientDescent, OptimizeSpec
from safemerge.weights.checkpoint import layer_of
from safemerge.weights.difference import changed_names
from safemerge.weights.kind import module_kind


@dataclass(frozen=True)
class CoefficientTable:
    """Which coefficients c[expert, group] there are, and which of them change the merge."""

    experts: tuple[str, ...]
    """Names in the table's order."""
    layer_groups: tuple[LayerGroup, ...]
    """Groups as the recipe declares them."""
    changed: Mapping[str, frozenset[str]]
    """Names of the tensors that each expert changes."""
    names: tuple[str, ...]
    """The base's tensor names."""
    groups: tuple[str, ...] = field(init=False)
    """Names of the groups, in the recipe's order; ``default`` last, if it holds a tensor."""
    column_by_name: Mapping[str, int] = field(init=False)
    """Index of each tensor's group."""

    def __post_init__(self) -> None:
        group_by_name = {name: group_of(name, self.layer_groups) for name in self.names}
        declared = [group.name for group in self.layer_groups]
        rest = DEFAULT_GROUP in group_by_name.values()
        groups = (*declared, *([DEFAULT_GROUP] if rest else []))
        columns = {name: groups.index(group) for name, group in group_by_name.items()}
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "column_by_name", columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Experts, groups."""
        return len(self.experts), len(self.groups)

    @property
    def active(self) -> Bool[Tensor, "experts groups"]:
        """Where an expert changes a tensor of a group; elsewhere a coefficient does nothing."""
        active = torch.zeros(self.shape, dtype=torch.bool)
        for row, expert in enumerate(self.experts):
            for name in self.changed[expert]:
                active[row, self.column_by_name[name]] = True
        return active

    def weights(self, values: Float64[Tensor, "experts groups"]) -> dict[str, Coefficient]:
        """Return a recipe's weights by expert.

        Args:
            values: The coefficients; those that do nothing are written as 0.

        Returns:
            A number for each expert if there is one group, else a number by group.
        """
        kept = torch.where(self.active, values, 0.0).tolist()
        if self.groups == (DEFAULT_GROUP,):
            return {name: row[0] for name, row in zip(self.experts, kept, strict=True)}
        return {
            name: dict(zip(self.groups, row, strict=True))
            for name, row in zip(self.experts, kept, strict=True)
        }


def layer_groups(names: Sequence[str]) -> list[LayerGroup]:
    """Return a group for every decoder layer, then one for embeddings and the output head.

    Args:
        names: Tensor names.

    Returns:
        Groups that hold at least one tensor each; what they leave is the group ``default``.
    """
    layers = sorted({layer for name in names if (layer := layer_of(name)) is not None})
    groups = [LayerGroup(name=f"layer-{layer}", layers=str(layer)) for layer in layers]
    outside = [name for name in names if layer_of(name) is None]
    if any(module_kind(name) == "embeddings" for name in outside):
        groups.append(LayerGroup(name="embeddings", kind="embeddings"))
    return groups


def coefficient_table(spec: OptimizeSpec, resident: ResidentCheckpoints) -> CoefficientTable:
    """Return the coefficients that a declared optimisation looks for.

    Args:
        spec: The declared optimisation.
        resident: Its open checkpoints.

    Returns:
        The table; one group for methods without coefficients of task vectors.

    Raises:
        CheckpointMismatchError: If an expert is the base itself: its task vector is zero.
    """
    base, optimizer = resident.base, spec.optimizer
    names = base.distinct_names
    changed = {
        ref.name: changed_names(base, resident.checkpoints[ref.name]) for ref in spec.experts
    }
    for expert, found in changed.items():
        if not found:
            raise CheckpointMismatchError(
                f"{spec.name}, expert '{expert}': must differ from the base '{spec.base.name}'; "
                f"got a task vector of zero in all {len(names)} tensors. Name another checkpoint."
            )
    groups: list[LayerGroup] = []
    if isinstance(optimizer, GradientDescent | CmaEs):
        by_layer = optimizer.coefficients == "layer"
        groups = layer_groups(names) if by_layer else list(optimizer.layer_groups)
    return CoefficientTable(tuple(ref.name for ref in spec.experts), tuple(groups), changed, names)


def first_values(spec: OptimizeSpec, table: CoefficientTable) -> Float64[Tensor, "experts groups"]:
    """Return the coefficients that an optimisation starts from; 0 where they do nothing."""
    optimizer = spec.optimizer
    assert isinstance(optimizer, GradientDescent | CmaEs), "only these have coefficients"
    first = optimizer.first_value(len(table.experts))
    return table.active.double() * first


def coefficient_recipe(
    spec: OptimizeSpec,
    table: CoefficientTable,
    values: Float64[Tensor, "experts groups"],
    *,
    density: float | None = None,
) -> MergeRecipe:
    """Return the recipe of a table of coefficients.

    Args:
        spec: The declared optimisation.
        table: Which coefficients there are.
        values: The coefficients.
        density: Fraction of entries kept, for methods that sparsify.

    Returns:
        A recipe over the optimisation's checkpoints.
    """
    optimizer = spec.optimizer
    name = optimizer.method if isinstance(optimizer, CmaEs) else "task_arithmetic"
    method: dict[str, object] = {"name": name, "weights": table.weights(values)}
    if density is not None:
        method["density"] = density
    return MergeRecipe.model_validate(
        {
            "base": spec.base,
            "experts": spec.experts,
            "method": method,
            "layer_groups": list(table.layer_groups),
            "dtype": spec.dtype,
            "seed": spec.seed,
        }
    )
