"""What the checkpoints of a study have seen, so that its report is not about that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.rung import RungSpec
from safemerge.config.source import PromptData, SeenData
from safemerge.config.statistics import StatisticsSpec
from safemerge.config.training import TrainingSpec
from safemerge.data.rung import check_rung, check_rung_is_fresh
from safemerge.data.seen import recorded
from safemerge.data.suite import LoadedSuite, check_training
from safemerge.distributed.ingredient import known_folder, training_plan
from safemerge.distributed.statistics import gathered_files, load_statistics_spec
from safemerge.errors import DataError
from safemerge.merge.writer import RECIPE_FILE

Model = TypeVar("Model", bound=BaseModel)

_UNREADABLE = (
    ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError
)  # fmt: skip


def check_report(
    refs: Sequence[CheckpointRef], report: Sequence[LoadedSuite], *, seen: Sequence[SeenData] = ()
) -> None:
    """Refuse report prompts that a checkpoint, or what it is made of, was trained on.

    Args:
        refs: Located references: to training files, or to folders, of which merges tell what
            their recipes were found with.
        report: The report split.
        seen: What a recipe records itself.

    Raises:
        DataError: See `safemerge.data.suite.check_training`.
    """
    found = {(item.name, item.rows): item for item in (*seen, *_merged_with(refs))}
    check_training(_stages(refs), report, seen=list(found.values()))


def check_study_rung(
    rung: RungSpec,
    refs: Sequence[CheckpointRef],
    suites: Sequence[LoadedSuite],
    *,
    seen: Sequence[SeenData] = (),
) -> None:
    """Refuse a rung that shares prompts with suites, stages, or what recipes were found with.

    Args:
        rung: The rung, located.
        refs: Located references, as for `check_report`.
        suites: Suites of both splits.
        seen: What the recipes that a study starts from record.

    Raises:
        DataError: See `safemerge.data.rung`.
    """
    check_rung(rung, suites)
    check_rung_is_fresh(rung, _stages(refs), [*seen, *_merged_with(refs)])


def seen_data(refs: Sequence[CheckpointRef], sets: Mapping[str, PromptData]) -> list[SeenData]:
    """Return what a recipe over checkpoints must record.

    Args:
        refs: Located references, as declared: before they are trained.
        sets: Further data that decide the recipe, by place.

    Raises:
        DataError: If data cannot be read.
    """
    trained = {
        f"{stage.name}.{place}": data
        for stage in _stages(refs)
        for place, data in stage.training_sets.items()
    }
    return [*recorded({**trained, **sets}), *_merged_with(refs)]


def _trained(refs: Sequence[CheckpointRef]) -> list[TrainingSpec]:
    return [stage.load() for wave in training_plan(refs) for stage in wave]


def _stages(refs: Sequence[CheckpointRef]) -> list[TrainingSpec | StatisticsSpec]:
    return [*_trained(refs), *(load_statistics_spec(file) for file in gathered_files(refs))]


def _parsed(model: type[Model], document: object) -> Model:
    return model.model_validate_json(json.dumps(document))


def _merged_with(refs: Sequence[CheckpointRef]) -> list[SeenData]:
    """What the recipes in folders of merged checkpoints record, their parts' included."""
    waiting = [known_folder(ref) for ref in (*refs, *(stage.base for stage in _trained(refs)))]
    done: set[str] = set()
    found: list[SeenData] = []
    while waiting:
        folder = waiting.pop()
        if folder is None or folder in done:
            continue
        done.add(folder)
        path = Path(folder) / RECIPE_FILE
        if not path.is_file():
            continue
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            place = Path(folder)
            items = [_parsed(SeenData, item) for item in document.get("seen", [])]
            found += [item.located(place) for item in items]
            parents = (document["base"], *document["experts"])
            waiting += [
                known_folder(_parsed(CheckpointRef, ref).located(place)) for ref in parents
            ]
        except _UNREADABLE as error:
            raise DataError(
                f"{path}: must be the recipe that safemerge wrote; got: "
                f"{str(error).splitlines()[0]}. Write the merge again."
            ) from None
    return found
