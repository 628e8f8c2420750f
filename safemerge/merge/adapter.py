"""Write a merge of LoRA adapters as one adapter that peft and vLLM load."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from safemerge.config.portable import portable_path, portable_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.merge.card import model_card
from safemerge.merge.folder import free_place, whole_folder
from safemerge.merge.lora import MergedAdapter, merge_adapters
from safemerge.merge.nearest import adapter_places, nearest_adapter
from safemerge.merge.spectrum import SpectrumCache
from safemerge.merge.stream import merged_tensors
from safemerge.merge.threshold import ThresholdCache
from safemerge.merge.writer import RECIPE_FILE
from safemerge.weights.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterCheckpoint
from safemerge.weights.checkpoint import Checkpoint
from safemerge.weights.shared_vocabulary import stored_checkpoint
from safemerge.weights.statistics import ModelStatistics

_PREFIX = "base_model.model."

Card = Callable[[str], str]


def write_adapter(
    recipe: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    out_dir: Path | str,
    *,
    rank: int | None = None,
    card: Card | None = None,
) -> MergedAdapter:
    """Merge LoRA adapters into the folder of one: config, factors, model card and recipe.

    Every factor pair has scale 1: ``lora_alpha`` equals the rank, module by module where ranks
    differ (``rank_pattern``, ``alpha_pattern``), and ``r`` is the largest, as vLLM needs. A
    local base is named by its path from the folder. The folder appears whole or not
    at all. Tokenizer and config are the base's and not copied.

    Args:
        recipe: What to merge; see `check_adapter_recipe`.
        checkpoints: Base and experts by the names of the recipe, checked already.
        out_dir: Folder to write; missing, or empty.
        rank: Largest rank of a module, at least 1; None for the sum of the adapters' ranks,
            which is exact.
        card: Gives the text of README.md for a sentence that says what the adapter is; None for
            a card that says what was merged and what was lost.

    Returns:
        What was written, with what reducing the rank lost.

    Raises:
        UserError: If `out_dir` is a file or a folder that is not empty.
        PreflightError: If the disk has too little space or the folder cannot be written.
        ConfigError, CheckpointMismatchError, MergeError: See `merge_adapters`.
    """
    out = free_place(out_dir)
    merged = merge_adapters(recipe, checkpoints, rank=rank)
    adapters = [
        checkpoint
        for name in sorted(recipe.method.model_names())
        if isinstance(checkpoint := stored_checkpoint(checkpoints[name]), AdapterCheckpoint)
    ]
    config = _config(
        merged,
        base=recipe.base.hub or _agreed([adapter.named_base for adapter in adapters]),
        task_type=_agreed([adapter.adapter_config.get("task_type") for adapter in adapters]),
        every=adapters[0].memory_names,
        out=out,
    )
    _write(recipe, merged, config, out, card=card)
    return merged


def write_nearest_adapter(
    recipe: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    out_dir: Path | str,
    *,
    rank: int,
    modules_to_save: bool = False,
    thresholds: ThresholdCache | None = None,
    spectra: SpectrumCache | None = None,
    statistics: Mapping[str, ModelStatistics] | None = None,
    progress: Callable[[int, int], None] | None = None,
    card: Card | None = None,
) -> MergedAdapter:
    """Write the adapter nearest to any merge into the folder of one; see `nearest_adapter`.

    The folder is as `write_adapter` writes it; the merge is computed in float32, and so are the
    factors.

    Args:
        recipe: What to merge.
        checkpoints: Base and experts by the names of the recipe, checked already.
        out_dir: Folder to write; missing, or empty.
        rank: Largest rank of a weight's update, at least 1.
        modules_to_save: Whether what no factors can hold is stored whole.
        thresholds: Trim thresholds kept between candidates; None for nowhere.
        spectra: Singular vectors kept between candidates; None for nowhere.
        statistics: Open statistics by model name, for recipes that read them.
        progress: Called after each tensor with tensors done and tensors in all.
        card: Gives the text of README.md for a sentence that says what the adapter is; None for
            a card that says what was merged and what was lost.

    Returns:
        What was written, with what was lost and left out.

    Raises:
        UserError: If `out_dir` is a file or a folder that is not empty.
        PreflightError: If the disk has too little space or the folder cannot be written.
        CheckpointError, CheckpointMismatchError, ConfigError, MergeError: See
            `nearest_adapter`, `adapter_places` and `merged_tensors`.
    """
    out = free_place(out_dir)
    base = stored_checkpoint(checkpoints[recipe.base.name])
    places = adapter_places(base)
    stream = merged_tensors(
        recipe.model_copy(update={"dtype": "float32"}),  # rounding would have the full rank
        checkpoints,
        thresholds=thresholds,
        spectra=spectra,
        statistics=statistics,
        keep_pages=False,
    )
    merged = nearest_adapter(
        recipe,
        checkpoints,
        stream,
        places,
        rank=rank,
        modules_to_save=modules_to_save,
        progress=progress,
    )
    config = _config(
        merged,
        base=recipe.base.hub or str(base.folder.absolute()),
        task_type="CAUSAL_LM" if places.causal else None,
        every=sorted(places.memory_names.values()),
        out=out,
    )
    _write(recipe, merged, config, out, card=card)
    return merged


def _write(
    recipe: MergeRecipe,
    merged: MergedAdapter,
    config: Mapping[str, Any],
    out: Path,
    *,
    card: Card | None,
) -> None:
    tensors = _tensors(merged)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    said = _said(merged, config)
    text = model_card(recipe, adapter=said) if card is None else card(said)
    with whole_folder(out, num_bytes=num_bytes) as folder:
        _write_json(folder / ADAPTER_CONFIG, config)
        _write_json(folder / RECIPE_FILE, portable_recipe(recipe, out).resolved())
        (folder / "README.md").write_text(text, encoding="utf-8")
        save_file(tensors, str(folder / ADAPTER_WEIGHTS), metadata={"format": "pt"})
        shutil.copymode(folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS)


def _tensors(merged: MergedAdapter) -> dict[str, Tensor]:
    named = merged.memory_names
    found = {f"{_PREFIX}{named[name]}": tensor for name, tensor in merged.whole.items()}
    for name, product in merged.products.items():
        kind = "lora_embedding_{}" if product.embedding else "lora_{}.weight"
        key = f"{_PREFIX}{named[name].removesuffix('weight')}{kind}"
        lora_a, lora_b = product.down, product.up
        if product.transposed:
            lora_a, lora_b = product.up.T, product.down.T
        found[key.format("A")], found[key.format("B")] = lora_a, lora_b
    return {key: tensor.contiguous() for key, tensor in found.items()}


def _config(
    merged: MergedAdapter,
    *,
    base: str | None,
    task_type: str | None,
    every: Iterable[str],
    out: Path,
) -> dict[str, Any]:
    """Return adapter_config.json; `every` is what the base has in memory, by name."""
    ranks = {
        merged.memory_names[name].removesuffix(".weight"): product.rank
        for name, product in merged.products.items()
    }
    largest = max(ranks.values())
    pattern = {
        module: rank for module, rank in _shortened(ranks, ranks).items() if rank != largest
    }
    modules = [name.removesuffix(".weight") for name in every if name.endswith(".weight")]
    targets = _shortened(dict.fromkeys(ranks, True), modules)
    saved = sorted(
        {
            merged.memory_names[name].rpartition(".")[0]
            for name in merged.whole
            if name != merged.tied_head
        }
    )
    linear = [product for product in merged.products.values() if not product.embedding]
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base and portable_path(base, out),
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(product.transposed for product in linear),
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": saved or None,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(targets),
        "use_dora": False,
        "use_rslora": False,
        **({"ensure_weight_tying": True} if merged.tied_head else {}),
    }


def _shortened(values: Mapping[str, Any], modules: Iterable[str]) -> dict[str, Any]:
    """Name modules by their last part where all modules of that name are in, with one value."""
    found: dict[str, Any] = {}
    by_part: dict[str, list[str]] = {}
    for module in modules:
        by_part.setdefault(module.rpartition(".")[2], []).append(module)
    for part, named in by_part.items():
        inside = {module: values[module] for module in named if module in values}
        whole = len(inside) == len(named) and len(set(inside.values())) == 1
        found.update({part: inside[named[0]]} if whole else inside)
    return found


def _agreed(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def _said(merged: MergedAdapter, config: Mapping[str, Any]) -> str:
    said = (
        f"A LoRA adapter of rank {config['r']} at most, on {len(merged.products)} weights; "
        f"`peft.PeftModel.from_pretrained` loads it on the base. "
    )
    if config["modules_to_save"]:
        said += f"It stores {len(config['modules_to_save'])} modules whole. "
    if merged.lost == 0.0:
        return said + "It is the merge itself: factors side by side, nothing approximated."
    name, worst = merged.worst
    said += (
        f"It is the nearest of that rank: {merged.lost:.3e} of the update's Frobenius norm is "
        f"lost, {worst:.3e} at most in one weight (`{name}`)."
    )
    if merged.left_out:
        said += (
            f" {len(merged.left_out)} tensors that no factors hold differ from the merge's and "
            f"are the base's: {merged.left_out_share:.3e} of that norm."
        )
    return said


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
