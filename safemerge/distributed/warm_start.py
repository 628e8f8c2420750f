"""Warm starts: recipe files read and checked before anything starts, then set over a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import MergeRecipe
from safemerge.config.source import SeenData
from safemerge.config.study import StudySpec
from safemerge.config.warm_start import WarmStart, read_recipe, warm_start_names
from safemerge.distributed.ingredient import finished_folder
from safemerge.errors import ConfigError
from safemerge.merge.coefficient import check_groups
from safemerge.search.nearest import source_of
from safemerge.search.warm_start import over_study, start_problems
from safemerge.weights.adapter import open_checkpoint
from safemerge.weights.fingerprint import fingerprint


class ReadStart(NamedTuple):
    """A recipe file whose models were found among a study's."""

    file: str
    name: str
    recipe: MergeRecipe
    models: Mapping[str, str]
    """Name of the study's checkpoint, or variant of one, for each expert of the recipe."""


def read_starts(spec: StudySpec) -> list[ReadStart]:
    """Read a study's recipe files and check them against it; nothing is trained for it.

    Args:
        spec: The study as declared, located.

    Returns:
        What was read, in order.

    Raises:
        ConfigError: If a file is missing or wrong, its models are not the study's, no space has
            its method, or its layer groups do not fit the base.
        UserError: If a checkpoint cannot be read.
    """
    found, problems = [], []
    names = warm_start_names(spec.start)
    base = finished_folder(spec.base) if spec.start else None
    tensors = open_checkpoint(base).distinct_names if base is not None else None
    for file, name in zip(spec.start, names, strict=True):
        try:
            recipe = read_recipe(file)
            models = _models(spec, recipe, file)
            if tensors is not None:
                check_groups(recipe, tensors)
        except ConfigError as error:
            problems.append(str(error))
        else:
            found.append(ReadStart(file, name, recipe, models))
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def seen_by(starts: Sequence[ReadStart]) -> list[SeenData]:
    """Return the data that recipes were found with: no report may be about them."""
    return [item for start in starts for item in start.recipe.seen]


def with_starts(spec: StudySpec, starts: Sequence[ReadStart]) -> StudySpec:
    """Return a resolved study with its warm starts over its own models.

    Args:
        spec: The study, every checkpoint a folder with its fingerprint.
        starts: What `read_starts` found.

    Raises:
        ConfigError: If a recipe carries the fingerprint of other weights or statistics, or is
            not legal over the study's models.
    """
    if not starts:
        return spec
    by_name = {ref.name: ref for ref in spec.all_checkpoints}
    num_layers = max(1, open_checkpoint(str(spec.base.path)).num_layers)
    started = []
    for file, name, recipe, models in starts:
        problems = [
            f"{file}: {problem}"
            for ref in recipe.checkpoints
            for problem in _digest_problems(recipe, ref, by_name[models[ref.name]])
        ]
        if problems:
            raise ConfigError("\n".join(problems))
        refs = {expert.name: by_name[models[expert.name]] for expert in recipe.experts}
        own = over_study(spec, recipe, refs, where=file)
        started.append(WarmStart(name=name, recipe=own, num_layers=num_layers))
    return spec.model_copy(update={"started": started})


def _models(spec: StudySpec, recipe: MergeRecipe, file: str) -> dict[str, str]:
    """Find each model of a recipe in the study.

    Raises:
        ConfigError: With all that keeps the recipe from starting the study.
    """
    problems = start_problems(spec, recipe)
    models: dict[str, str] = {}
    if not problems:
        for ref, candidates in _pairs(spec, recipe):
            try:
                models[ref.name] = _same_model(ref, candidates).name
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
    return models


def _pairs(
    spec: StudySpec, recipe: MergeRecipe
) -> Iterator[tuple[CheckpointRef, list[CheckpointRef]]]:
    """Yield each model of a recipe with what it may be in the study."""
    yield recipe.base, [spec.base]
    declared = {expert.name: expert for expert in spec.experts}
    for ref in recipe.experts:
        variants = [item.checkpoint for item in spec.variants if item.expert == ref.name]
        yield ref, [declared[ref.name], *variants]


def _same_model(ref: CheckpointRef, candidates: Sequence[CheckpointRef]) -> CheckpointRef:
    """Find the study's reference that is a recipe's model: the same source, or the same weights.

    Raises:
        ConfigError: If there is none.
    """
    for candidate in candidates:
        if source_of(ref) == source_of(candidate):
            return candidate
    folder = None if ref.digest is not None else finished_folder(ref)
    digest = ref.digest if folder is None else fingerprint(folder)
    to_train = []
    for candidate in candidates:
        found = finished_folder(candidate)
        if found is None:
            to_train.append(candidate.align or candidate.finetune)
        elif digest is not None and fingerprint(found) == digest:
            return candidate
    wanted = f"fingerprint {digest}" if digest is not None else "a model that is not trained yet"
    advice = "Take a recipe over the study's models."
    if to_train:
        advice = (
            f"The study's is still to be trained, from {to_train[0]}: train it first, or take a "
            "recipe over the study's models."
        )
    raise ConfigError(f"model '{ref.name}': must be the study's; got {wanted}. {advice}")


def _digest_problems(
    recipe: MergeRecipe, ref: CheckpointRef, found: CheckpointRef
) -> Iterator[str]:
    if ref.digest is not None and ref.digest != found.digest:
        yield (
            f"model '{ref.name}': weights must have fingerprint {ref.digest}; got {found.digest} "
            f"in {found.path}. The files changed since the recipe was written."
        )
    measured = ref.statistics and ref.statistics.digest
    now = found.statistics and found.statistics.digest
    if ref.name in recipe.statistics_read() and measured is not None and measured != now:
        yield (
            f"model '{ref.name}': statistics must have digest {measured}; got {now} in the "
            "study. Gather the same."
        )
