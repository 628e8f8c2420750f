"""From a cell of the grid to the fine-tuning stage that attacks."""

from __future__ import annotations

from typing import Any

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.source import TrainingData
from safemerge.config.training import FinetuneSpec, PoisonSpec
from safemerge.errors import ConfigError
from safemerge.robustness.spec import Cell, RobustnessSpec


def attack_stage(
    spec: RobustnessSpec, cell: Cell, *, base: str = ".", adapter: str | None = None
) -> FinetuneSpec:
    """Return the stage of an attacked cell.

    The benign sets share n (1 - p) samples by their weights and the harmful set gives n p, each
    the first rows of its declared range, so that a larger n holds a smaller one's rows. As in
    every stage, samples are drawn with replacement: n x epochs / batch_size steps.

    Args:
        spec: The measurement.
        cell: An attacked cell.
        base: Folder of the weights that training starts from.
        adapter: Folder of the hardened adapter, for mode ``same``.

    Raises:
        ConfigError: If the cell is not attacked, or a benign set of the grid gets no sample.
    """
    if cell.mode is None:
        raise ConfigError(f"{cell.label}: must be an attack to have a stage; got none.")
    settings = spec.finetune
    num_harmful = round(cell.num_samples * cell.poison_ratio)
    num_benign = cell.num_samples - num_harmful
    total = sum(item.weight for item in settings.data)
    # A searched poison ratio is drawn: near 1 it leaves each benign set a row at least.
    least = 0 if cell.steps is None else 1
    data = [
        _first(
            item,
            max(least, round(num_benign * item.weight / total)),
            f"finetune.data.{index}",
            cell,
        )
        for index, item in enumerate(settings.data)
        if num_benign
    ]
    poison = None
    if num_harmful:
        poison = PoisonSpec(
            ratio=num_harmful / cell.num_samples,
            data=_first(settings.poison, num_harmful, "finetune.poison", cell),
        )
    lora = settings.lora
    if cell.rank is not None:
        lora = lora.model_copy(update={"rank": cell.rank})
    own: dict[str, Any] = {} if cell.mode == "same" else {"lora": lora}
    if cell.mode == "full":
        own = {"parameters": "full"}
    return FinetuneSpec(
        name=f"{cell.method}-seed{cell.seed}-{cell.mode}",
        base=CheckpointRef(name="hardened", path=base),
        # With p = 1 nothing benign is drawn: the ratio leaves the benign sets no share.
        data=data or settings.data,
        poison=poison,
        chat=settings.chat,
        steps=cell.steps
        or max(1, round(cell.num_samples * settings.epochs / settings.batch_size)),
        batch_size=settings.batch_size,
        micro_batches=settings.micro_batches,
        learning_rate=cell.learning_rate,
        schedule=settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        max_tokens=settings.max_tokens,
        seed=cell.seed,
        adapter=adapter,
        output="dense" if cell.mode == "full" else "adapter",
        dtype=settings.dtype,
        **own,
    )


def _first(data: TrainingData, count: int, where: str, cell: Cell) -> TrainingData:
    if count < 1:
        raise ConfigError(
            f"{where}: must give at least one sample; got {count} of n={cell.num_samples} at "
            f"p={cell.poison_ratio:g}. Raise num_samples or the set's weight."
        )
    source = data.source.model_copy(update={"stop": data.source.start + count})
    return data.model_copy(update={"source": source})
