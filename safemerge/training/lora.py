"""A base model with a trainable low-rank adapter, and back to a plain checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.training import LoraSpec
from safemerge.errors import ConfigError
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.writer import write_merged


def attach_lora(model: Any, spec: LoraSpec, *, where: str) -> Any:
    """Wrap a transformers model with a float32 LoRA adapter.

    Args:
        model: A causal LM; its own weights are frozen.
        spec: Rank, scale, targets.
        where: Place for messages.

    Returns:
        The peft model. Adapters are float32 whatever the base's type.

    Raises:
        ConfigError: If a target name matches no module, or the first layer does not exist.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = [target for target in spec.targets if target not in names]
    if missing:
        modules = model.named_modules()
        linear = sorted(
            {name.rsplit(".", 1)[-1] for name, m in modules if isinstance(m, torch.nn.Linear)}
        )
        raise ConfigError(
            f"{where}: lora.targets must name modules of the model; got {missing[0]!r}. "
            f"Linear modules here: {', '.join(linear)}."
        )
    layers = int(model.config.num_hidden_layers)
    if spec.first_layer >= layers:
        raise ConfigError(
            f"{where}: lora.first_layer must be below the model's {layers} layers; "
            f"got {spec.first_layer}."
        )
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        layers_to_transform=list(range(spec.first_layer, layers)) if spec.first_layer else None,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def save_trained(model: Any, base: Path, folder: Path, *, output: str) -> None:
    """Write the trained model as an adapter, or merged into a dense checkpoint of its base.

    A dense checkpoint is the base on disk plus the adapter's product, added in float32 and
    rounded once to the base's dtype; tensors without an adapter are the base's own.

    Args:
        model: The peft model.
        base: The base's folder: weights, config, tokenizer and chat template come from there.
        folder: Where to write; must be new or empty.
        output: ``dense`` or ``adapter``.
    """
    if output == "adapter":
        model.save_pretrained(str(folder))
        return
    with tempfile.TemporaryDirectory(prefix="safemerge-adapter-") as scratch:
        model.save_pretrained(scratch)
        trained = CheckpointRef(name="trained", path=scratch)
        recipe = MergeRecipe(
            base=CheckpointRef(name="base", path=str(base)),
            experts=[trained],
            method=Linear(name="linear", weights={trained.name: 1.0}),
        )
        write_merged(recipe, ResidentCheckpoints.open(recipe).checkpoints, folder)
    # The recipe names a folder that is gone; the marker of the stage tells the provenance.
    for name in ("README.md", "safemerge_recipe.json"):
        (folder / name).unlink(missing_ok=True)
