"""Stand-ins for gathered statistics: seeded, of the right shapes, with nothing measured."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path

import torch

from safemerge.config.checkpoint import Quantity
from safemerge.weights import TensorStatistics, fingerprint, open_checkpoint
from safemerge.weights.kind import module_kind
from safemerge.weights.statistics import FILES, save_statistics


def random_statistics(
    tensor: str, shape: tuple[int, ...], models: Iterable[str]
) -> dict[str, TensorStatistics]:
    """Return statistics of one named tensor by model, as if they had been gathered.

    Args:
        tensor: Tensor name; with the model's it seeds the values. Embeddings have no Gram matrix.
        shape: The tensor's shape.
        models: Model names.

    Returns:
        Positive Fishers and importances; for matrices a Gram matrix of full rank.
    """
    return {model: _random(tensor, shape, model) for model in models}


def write_statistics(
    out: Path | str,
    checkpoint: Path | str,
    *,
    model: str,
    quantities: Collection[Quantity] = tuple(FILES),
) -> Path:
    """Write a folder of stand-in statistics of a checkpoint.

    Args:
        out: Folder to write; must be missing.
        checkpoint: Folder of a dense checkpoint; gives names, shapes and fingerprint.
        model: Seeds the values.
        quantities: What the folder holds.

    Returns:
        The folder.
    """
    opened, folder = open_checkpoint(checkpoint), Path(out)
    found = {name: _random(name, opened.shape(name), model) for name in opened.distinct_names}
    tensors = {
        stem: {
            name: item
            for name, of_tensor in found.items()
            if (item := getattr(of_tensor, stem)) is not None
        }
        for quantity in quantities
        for stem in FILES[quantity]
    }
    fishers = [item.fisher for item in found.values() if item.fisher is not None]
    count = sum(item.numel() for item in fishers)
    folder.mkdir(parents=True)
    save_statistics(
        folder,
        tensors,
        {
            "quantities": list(quantities),
            "digest": f"stand-in-{model}",
            "model": fingerprint(checkpoint),
            "fisher": {
                "norm": math.sqrt(sum(float(item.square().sum()) for item in fishers)),
                "mean": sum(float(item.sum()) for item in fishers) / count,
            },
            "gram": {"tokens": dict.fromkeys(tensors.get("gram", {}), 10_000)},
        },
    )
    return folder


def _random(tensor: str, shape: tuple[int, ...], model: str) -> TensorStatistics:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{tensor}/{model}".encode()))

    def positive() -> torch.Tensor:
        return torch.rand(shape, generator=generator) + 0.01

    fisher, importance, base_importance = positive(), positive(), positive()
    gram = None
    if len(shape) == 2 and module_kind(tensor) not in ("embeddings", "norms"):
        inputs = torch.randn(4 * shape[1] + 4, shape[1], generator=generator)
        gram = inputs.T @ inputs / len(inputs)
    return TensorStatistics(
        fisher=fisher,
        gram=gram,
        importance=importance,
        base_importance=base_importance,
    )
