"""A base model with a trainable low-rank adapter, and back to a plain checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from safemerge.config.training import LoraSpec
from safemerge.errors import ConfigError


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
    """Write the trained model as a dense checkpoint of the base's dtype, or as an adapter.

    Args:
        model: The peft model; a dense save merges the adapter into it (it is used up).
        base: The base's folder: config, tokenizer and chat template come from there.
        folder: Where to write; created.
        output: ``dense`` or ``adapter``.
    """
    from transformers import AutoConfig

    folder.mkdir(parents=True, exist_ok=True)
    if output == "adapter":
        model.save_pretrained(str(folder))
        return
    dtype = getattr(AutoConfig.from_pretrained(str(base)), "dtype", None) or torch.float32
    # Merged in float32, then rounded once to the base's type.
    merged = model.float().merge_and_unload().to(dtype)
    merged.save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
