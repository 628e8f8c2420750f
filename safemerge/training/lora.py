"""A base model with a trainable low-rank adapter, and back to a plain checkpoint."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.stage import LoraSpec
from safemerge.errors import CheckpointMismatchError, ConfigError
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.writer import write_merged
from safemerge.training.ingredient import MARKER
from safemerge.training.text_decoder import text_decoder
from safemerge.weights.adapter import ADAPTER_CONFIG, is_adapter, named_base, open_checkpoint
from safemerge.weights.checkpoint import CONFIG_FILE, layer_of, read_json
from safemerge.weights.fingerprint import fingerprint
from safemerge.weights.skeleton import auto_class, folder_config


def bare_model(base: Path) -> Any:
    """Return the model of a checkpoint's config without memory for weights, to look at.

    Raises:
        CheckpointError: If transformers has no model that continues text for it.
    """
    loader = auto_class(base)
    with torch.device("meta"):
        return loader.from_config(folder_config(base))


def check_targets(model: Any, spec: LoraSpec, *, where: str) -> None:
    """Check that a model has what an adapter adapts.

    Args:
        model: A causal LM, maybe a bare one.
        spec: Targets and first layer.
        where: Place for messages.

    Raises:
        ConfigError: If a target name matches no module, or the first layer does not exist.
    """
    decoder = text_decoder(model)
    inside = [*decoder.named_modules(), *_head(model)]
    names = {name.rsplit(".", 1)[-1] for name, _ in inside}
    missing = [target for target in spec.targets if target not in names]
    if missing:
        modules = inside
        linear = sorted(
            {name.rsplit(".", 1)[-1] for name, m in modules if isinstance(m, torch.nn.Linear)}
        )
        raise ConfigError(
            f"{where}: lora.targets must name modules of the model; got {missing[0]!r}. "
            f"Linear modules here: {', '.join(linear)}."
        )
    layers = int(model.config.get_text_config().num_hidden_layers)
    if spec.first_layer >= layers:
        raise ConfigError(
            f"{where}: lora.first_layer must be below the model's {layers} layers; "
            f"got {spec.first_layer}."
        )


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

    check_targets(model, spec, where=where)
    layers = int(model.config.get_text_config().num_hidden_layers)
    targets = _targets(model, spec)
    by_layer = list(range(spec.first_layer, layers)) if spec.first_layer else None
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        layers_to_transform=by_layer if targets == list(spec.targets) else None,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    _widen(wrapped)
    return wrapped


def _targets(model: Any, spec: LoraSpec) -> list[str]:
    """Names for peft: the targets, or, beside other towers, the text decoder's modules in full."""
    decoder = text_decoder(model)
    if decoder is model.base_model:
        return list(spec.targets)
    modules = {id(module) for _, module in [*decoder.named_modules(), *_head(model)]}
    return [
        name
        for name, module in model.named_modules()
        if id(module) in modules
        and name.rsplit(".", 1)[-1] in spec.targets
        and not _is_before(f"{name}.", spec.first_layer)
    ]


def _is_before(name: str, first_layer: int) -> bool:
    layer = layer_of(name)
    return layer is not None and layer < first_layer


def _head(model: Any) -> list[tuple[str, Any]]:
    head = model.get_output_embeddings()
    return [(name, module) for name, module in model.named_modules() if module is head]


def load_lora(model: Any, folder: Path, *, base: Path, where: str) -> Any:
    """Wrap a transformers model with an existing LoRA adapter to train on, in float32.

    Args:
        model: The base, a causal LM; its own weights are frozen.
        folder: The adapter's.
        base: The base's folder.
        where: Place for messages.

    Returns:
        The peft model.

    Raises:
        ConfigError: If the folder holds no adapter, or the adapter has dropout.
        CheckpointMismatchError: If the adapter was trained on another base.
        CheckpointError: If its tensors do not fit the base, or it is no plain LoRA.
    """
    from peft import PeftModel

    if not is_adapter(folder):
        raise ConfigError(
            f"{where}: adapter must be the folder of a LoRA adapter; got {folder}. Train it with "
            "output: adapter."
        )
    check_adapters_base(folder, base, where=where)
    open_checkpoint(folder, open_checkpoint(base))  # shapes and kind, without reading weights
    wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    if wrapped.peft_config["default"].lora_dropout:
        raise ConfigError(
            f"{where}: adapter must have no dropout; got "
            f"{wrapped.peft_config['default'].lora_dropout} in {folder}. Train another one."
        )
    _widen(wrapped)
    return wrapped


def check_adapters_base(folder: Path, base: Path, *, where: str) -> None:
    """Check that an adapter was trained on this base, as far as it tells.

    safemerge's own adapters carry their base's fingerprint. Others name it: where that is a folder
    of this machine, fingerprints are compared; a name on a hub tells nothing.

    Args:
        folder: The adapter's.
        base: The base's folder.
        where: Place for messages.

    Raises:
        CheckpointMismatchError: If the adapter was trained on another base.
    """
    marker, known = folder / MARKER, None
    if marker.is_file():
        known = json.loads(marker.read_text(encoding="utf-8")).get("base_fingerprint")
    else:
        named = named_base(folder, read_json(folder / ADAPTER_CONFIG))
        if named is not None and (Path(named) / CONFIG_FILE).is_file():
            known = fingerprint(named)
    found = fingerprint(base)
    if known is not None and known != found:
        raise CheckpointMismatchError(
            f"{where}: adapter must have been trained on this base ({found}); got {folder} on "
            f"{known}. Name the adapter's base."
        )


def _widen(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


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
