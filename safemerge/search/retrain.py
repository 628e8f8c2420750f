"""From interpolated weights to trained ones: which trials must be trained for before the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from safemerge.config.checkpoint import CheckpointRef, Setting
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.config.variant import expert_settings
from safemerge.front import non_dominated
from safemerge.records import TrialRecord

Place = Callable[[str, Mapping[str, Setting]], CheckpointRef]
"""From an expert's name and its settings to its checkpoint: one that exists, or the folder that
will hold it, without a fingerprint."""


def to_train(
    spec: StudySpec, records: Sequence[TrialRecord], flying: Collection[int]
) -> list[TrialRecord]:
    """Choose the interpolated trials that would be on the front and were not trained for yet.

    What was scored with weights between two trained models is an estimate; the front holds none
    of these. Once a trial was scored at its exact values, those count and the estimate does not.
    A trial that the estimate kept off the front may then join it: repeat until nothing is left.

    Args:
        spec: The study.
        records: Finished trials.
        flying: Numbers of trials whose exact counterpart is in flight.

    Returns:
        The trials, by number, each candidate once.
    """
    by_number = {record.number: record for record in records}
    settled = {by_number[number].candidate for number in _settled(spec, records)}
    waiting = {by_number[number].candidate for number in flying}
    eligible = [
        item
        for item in records
        if item.state == "COMPLETE"
        and item.feasible
        and not (item.interpolated and item.candidate in settled)
    ]
    return [
        item
        for item in non_dominated(spec, eligible)
        if item.interpolated and item.candidate not in waiting
    ]


def _settled(spec: StudySpec, records: Sequence[TrialRecord]) -> set[int]:
    """Trials that were scored at their exact values, or could not be, often enough."""
    tries: dict[int, int] = {}
    done = set()
    for record in records:
        if record.exact_of is None:
            continue
        tries[record.exact_of] = tries.get(record.exact_of, 0) + 1
        if record.state != "FAIL" or tries[record.exact_of] > spec.evaluator.num_retries:
            done.add(record.exact_of)
    return done


def exact_recipe(record: TrialRecord, place: Place) -> MergeRecipe:
    """Return an interpolated trial's recipe over experts that are trained at its own values.

    Args:
        record: The trial.
        place: Says which checkpoint an expert with some settings is.
    """
    recipe = MergeRecipe.model_validate(record.recipe)
    settings = expert_settings(record.params)
    by_name = {
        ref.name: place(ref.name, settings[ref.name]).model_copy(update={"name": ref.name})
        if ref.between is not None
        else ref
        for ref in recipe.checkpoints
    }
    return recipe.with_checkpoints(by_name)
