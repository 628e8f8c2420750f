"""Statistics of models as merging reads them: there, of the right shape, finite."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.config.coefficient import leaves
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import MergeError
from safemerge.weights.agreement import is_finite
from safemerge.weights.statistics import ModelStatistics, TensorStatistics


def measured_tensor(
    statistics: Mapping[str, TensorStatistics],
    model: str,
    field: str,
    *,
    shape: tuple[int, ...],
    where: str,
) -> Float[Tensor, "..."]:
    """Return what was measured of a model for a tensor.

    Args:
        statistics: Statistics of one named tensor, by model.
        model: Whose.
        field: A field of `TensorStatistics`.
        shape: What it must have.
        where: Place named first in messages.

    Raises:
        MergeError: If it is not given, of another shape, or not finite.
    """
    found = getattr(statistics.get(model), field, None)
    name = field.replace("_", " ")
    if found is None:
        raise MergeError(
            f"{where}: {name} of every merged model must be given; got none of '{model}'. Gather "
            f"its statistics."
        )
    assert isinstance(found, torch.Tensor), "only tensors are asked for"
    if tuple(found.shape) != shape:
        raise MergeError(
            f"{where}: {name} of '{model}' must have shape {shape}; got {tuple(found.shape)}. "
            f"Gather the statistics of this model."
        )
    if not is_finite(found):
        raise MergeError(
            f"{where}: {name} of '{model}' must be finite; got NaN or infinite entries. Gather "
            f"its statistics again."
        )
    return found


def check_statistics(recipe: MergeRecipe, statistics: Mapping[str, ModelStatistics]) -> None:
    """Refuse, before any tensor is merged, what can be seen to fail from names and counts.

    Args:
        recipe: What will be merged.
        statistics: Open statistics by model name.

    Raises:
        MergeError: If a model's statistics are not open, a quantity was not gathered, or
            RegMean's exact fit has fewer tokens than inputs.
    """
    where = f"recipe {recipe.digest[:4]}"
    for name, quantities in recipe.statistics_read().items():
        if name not in statistics:
            raise MergeError(
                f"{where}: statistics of every merged model must be open; got none of '{name}'. "
                f"Resolve the recipe first, so that they are gathered."
            )
        lacking = sorted(quantities - set(statistics[name].quantities))
        if lacking:
            raise MergeError(
                f"{where}, model '{name}': statistics must hold {lacking[0]}; got "
                f"{', '.join(statistics[name].quantities)} in '{statistics[name].folder}'. Add it "
                f"to quantities in the statistics file."
            )
    method = recipe.method
    if method.name != "regmean" or method.ridge > 0.0 or min(leaves(method.off_diagonal)) < 1.0:
        return
    counts = [statistics[name].gram_tokens() for name in method.weights]
    for tensor, (_, columns) in counts[0].items():
        total = sum(found[tensor][0] for found in counts if tensor in found)
        if total < columns:
            raise MergeError(
                f"{where}, tensor '{tensor}': the Gram matrices' sum must be invertible; got "
                f"{total} tokens for {columns} inputs, which makes it singular. Gather more rows, "
                f"lower off_diagonal, or set ridge above 0."
            )
