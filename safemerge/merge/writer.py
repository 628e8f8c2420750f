"""Write a candidate to disk as a checkpoint that any library loads."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safemerge.config.portable import portable_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.merge.candidate_tokenizer import added_tokens, give_tokenizer
from safemerge.merge.card import model_card, with_notices
from safemerge.merge.custom_code import (
    CustomCode,
    code_notices,
    custom_code,
    without_missing_code,
)
from safemerge.merge.folder import free_place, whole_folder
from safemerge.merge.shard import ShardWriter
from safemerge.merge.spectrum import SpectrumCache
from safemerge.merge.stream import in_one_vocabulary, merge_order, merged_dtype, merged_tensors
from safemerge.merge.threshold import ThresholdCache
from safemerge.merge.tokenizer_notice import tokenizer_notices
from safemerge.weights.agreement import check_agreement
from safemerge.weights.checkpoint import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, Checkpoint
from safemerge.weights.kind import tower_of
from safemerge.weights.notice import notices
from safemerge.weights.shared_vocabulary import stored_checkpoint, whole_checkpoint
from safemerge.weights.statistics import ModelStatistics

MAX_SHARD_BYTES = 5 * 10**9
"""Largest weight file, 5 GB, as the Hub's libraries write."""

RECIPE_FILE = "safemerge_recipe.json"
_COPIED = (
    # generation
    "generation_config.json",
    # tokenizers: fast, sentencepiece, byte-pair and word-piece vocabularies
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model*",
    "spiece.model",
    "spm*.model",
    "sentencepiece*.model",
    "tiktoken.model",
    "*.tiktoken",
    "*vocab*.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    # what else a processor loads
    "*preprocessor_config.json",
    "processor_config.json",
    "audio_tokenizer_config.json",
    "normalizer.json",
    # terms of use
    "LICENSE*",
    "NOTICE*",
)
"""Files of the base, as globs, that transformers may load beside weights and config."""

Progress = Callable[[int, int], None]
"""Called with (tensors done, tensors in all) after each tensor."""


class _Plan(NamedTuple):
    names_by_file: dict[str, tuple[str, ...]]
    num_bytes: int


def write_merged(
    recipe: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    out_dir: Path | str,
    *,
    progress: Progress | None = None,
    thresholds: ThresholdCache | None = None,
    spectra: SpectrumCache | None = None,
    statistics: Mapping[str, ModelStatistics] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    check: bool = True,
    card: str | None = None,
) -> Path:
    """Merge a recipe into a folder: weights, config, tokenizer, model card and recipe.

    Weights are safetensors, in several files with an index if they exceed a shard. config.json
    is the base's with the merged dtype and without ``quantization_config``; generation config,
    tokenizer, chat templates, processor, custom code and licence are the base's files, with the
    tokens that a union of vocabularies adds, unless `MergeRecipe.tokenizer` names other models
    for the tokenizer and the chat template. The card ends with what must be known of the models.
    Everything is written into a temporary folder beside `out_dir` that is renamed at the end, so
    `out_dir` is whole or absent; after an error the temporary folder is removed. Reading, merging
    and writing overlap; peak memory is two tensors of the result and two of each model, whatever
    the size of model and shards.

    Args:
        recipe: What to merge.
        checkpoints: Base and experts by the names of the recipe.
        out_dir: Folder to write; missing, or empty.
        progress: Called after each tensor with tensors done and tensors in all.
        thresholds: Trim thresholds kept between candidates; None for nowhere.
        spectra: Singular vectors kept between candidates; None for nowhere.
        statistics: Open statistics by model name, for recipes that read them.
        max_shard_bytes: Largest weight file; a larger tensor gets a file of its own.
        check: Whether to check first that the checkpoints agree and are finite.
        card: Text of README.md; None for a card that says what was merged.

    Returns:
        The absolute path of the folder.

    Raises:
        UserError: If `out_dir` is a file or a folder that is not empty.
        PreflightError: If the disk has too little space, before or while writing, or the
            folder cannot be written.
        CheckpointMismatchError: If the checkpoints disagree.
        CheckpointError: If a checkpoint cannot be read or is not finite.
        MergeError: If the merge cannot be computed.
    """
    out = free_place(out_dir)
    checkpoints = in_one_vocabulary(recipe, checkpoints)
    # NOTE: refuses what cannot be merged; merges nothing.
    merged_tensors(recipe, checkpoints, statistics=statistics)
    base = checkpoints[recipe.base.name]
    if check:
        experts = {ref.name: checkpoints[ref.name] for ref in recipe.experts}
        where = f"recipe {recipe.digest[:4]}"
        check_agreement(base, experts, mixed_dtypes=recipe.dtype != "base", where=where)
    code = custom_code(stored_checkpoint(base))
    plan = _plan(recipe, base, max_shard_bytes)
    with whole_folder(out, num_bytes=plan.num_bytes) as partial:
        _write_documents(recipe, checkpoints, partial, place=out, code=code, card=card)
        _write_weights(
            recipe,
            checkpoints,
            plan,
            partial,
            progress=progress,
            thresholds=thresholds,
            spectra=spectra,
            statistics=statistics,
        )
    return out


def _plan(recipe: MergeRecipe, base: Checkpoint, max_shard_bytes: int) -> _Plan:
    """Decide, from headers alone, which tensors go into which file."""
    groups: list[list[str]] = []
    num_bytes = shard_bytes = 0
    for name in merge_order(base.distinct_names):
        entries = torch.Size(base.shape(name)).numel()
        size = entries * merged_dtype(recipe, base, name).itemsize
        if not groups or shard_bytes + size > max_shard_bytes:
            groups.append([])
            shard_bytes = 0
        groups[-1].append(name)
        shard_bytes += size
        num_bytes += size
    if len(groups) == 1:
        return _Plan({SINGLE_FILE: tuple(groups[0])}, num_bytes)
    return _Plan(
        {
            f"model-{number:05d}-of-{len(groups):05d}.safetensors": tuple(names)
            for number, names in enumerate(groups, start=1)
        },
        num_bytes,
    )


def _write_weights(
    recipe: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    plan: _Plan,
    folder: Path,
    *,
    progress: Progress | None,
    thresholds: ThresholdCache | None,
    spectra: SpectrumCache | None,
    statistics: Mapping[str, ModelStatistics] | None,
) -> None:
    base = checkpoints[recipe.base.name]
    files = {
        file: {name: (merged_dtype(recipe, base, name), base.shape(name)) for name in names}
        for file, names in plan.names_by_file.items()
    }
    total = sum(len(names) for names in plan.names_by_file.values())
    with ShardWriter(folder, files) as shards:
        stream = merged_tensors(
            recipe,
            checkpoints,
            thresholds=thresholds,
            spectra=spectra,
            statistics=statistics,
            destination=shards.buffer,
            keep_pages=False,
        )
        for done, (name, tensor) in enumerate(stream, start=1):
            shards.put(name, tensor)
            if progress is not None:
                progress(done, total)
    if len(plan.names_by_file) > 1:
        weight_map = {name: file for file, names in plan.names_by_file.items() for name in names}
        index = {"metadata": {"total_size": plan.num_bytes}, "weight_map": weight_map}
        _write_json(folder / INDEX_FILE, index)


def _write_documents(
    recipe: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    folder: Path,
    *,
    place: Path,
    code: CustomCode,
    card: str | None,
) -> None:
    base = checkpoints[recipe.base.name]
    experts = {ref.name: checkpoints[ref.name] for ref in recipe.experts}
    _write_json(folder / CONFIG_FILE, without_missing_code(_merged_config(recipe, base), code))
    _write_json(folder / RECIPE_FILE, portable_recipe(recipe, place).resolved())
    said = (*notices(base, experts), *tokenizer_notices(recipe), *code_notices(code))
    text = with_notices(card or _card(recipe, base), said)
    (folder / "README.md").write_text(text, encoding="utf-8")
    given = whole_checkpoint(base).folder
    copied = {file for pattern in _COPIED for file in given.glob(pattern)}
    for source in sorted(copied | set(code.files)):
        if source.is_file():
            copy = folder / source.relative_to(given)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, copy)
    give_tokenizer(recipe, folder, added_tokens(base))


def _card(recipe: MergeRecipe, base: Checkpoint) -> str:
    towers = {tower for name in base.distinct_names if (tower := tower_of(name)) is not None}
    return model_card(recipe, towers=sorted(towers))


def _merged_config(recipe: MergeRecipe, base: Checkpoint) -> dict[str, Any]:
    config = _dense(base.config)
    nested = config.get("text_config")
    if isinstance(nested, dict):
        config["text_config"] = _dense(nested)
        if recipe.dtype != "base":
            config["text_config"] = _with_dtype(config["text_config"], recipe.dtype)
    return config if recipe.dtype == "base" else _with_dtype(config, recipe.dtype)


def _dense(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    return {**config, **dict.fromkeys(keys, dtype)}


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
