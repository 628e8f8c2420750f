"""That a study's low rung is about prompts which nobody else has seen, and enough of them."""

from __future__ import annotations

from collections.abc import Sequence

from safemerge.config.rung import RungSpec
from safemerge.config.source import SeenData
from safemerge.config.statistics import StatisticsSpec
from safemerge.config.training import TrainingSpec
from safemerge.data.rows import load_training_samples
from safemerge.data.sample import normalized_text
from safemerge.data.seen import seen_texts
from safemerge.data.suite import LoadedSuite, refuse_seen, sets_by_owner
from safemerge.errors import DataError


def check_rung(rung: RungSpec, suites: Sequence[LoadedSuite]) -> None:
    """Refuse prompts that a rung shares with a study's suites, and sets of too few rows.

    Args:
        rung: The rung, located.
        suites: Suites of both splits.

    Raises:
        DataError: If a prompt of a suite has the id or the normalised text of one of the rung,
            or is a near-duplicate of one; if a source cannot be read, or a template names a
            column that a row lacks; if a set has so few rows that no difference could be
            significant.
    """
    for name, sources in rung.sets.items():
        num_rows = sum(
            len(load_training_samples(source, where=f"rung.{name}.{index}", seed=0))
            for index, source in enumerate(sources)
        )
        # The least p-value of sign flips: all differences of one sign.
        least = 2.0 ** (1 - num_rows)
        if least > rung.level:
            raise DataError(
                f"rung.sets.{name}: must have rows enough for a paired test at level "
                f"{rung.level:g}; got {num_rows}, and even if all differ one way p is "
                f"{least:.2g}. Add rows, or raise rung.level."
            )
    refuse_seen(
        [("rung", rung.prompt_sets)],
        suites,
        same="suites: neither split may hold prompts of the rung",
        near="suites: prompts must not be near-duplicates of the rung's",
    )


def check_rung_is_fresh(
    rung: RungSpec, stages: Sequence[TrainingSpec | StatisticsSpec], seen: Sequence[SeenData]
) -> None:
    """Refuse a rung whose prompts a model was trained on, or a warm start was optimised on.

    On such rows that candidate has losses that no other reaches: all others would be pruned.

    Args:
        rung: The rung, located.
        stages: Training and statistics files of the study's checkpoints, with paths resolved.
        seen: Data recorded in recipes.

    Raises:
        DataError: If a prompt of the rung is one of them, by id or normalised text; names up to
            three.
    """
    used: dict[str, str] = {}
    for owner, declared in sets_by_owner(stages, seen):
        for identity, text in seen_texts(declared):
            used.setdefault(identity, owner)
            used.setdefault(normalized_text(text), owner)
    clashes = [
        f"{identity} ({who})"
        for identity, text in seen_texts(rung.prompt_sets)
        if (who := used.get(identity) or used.get(normalized_text(text))) is not None
    ]
    if clashes:
        raise DataError(
            "rung: must not hold prompts that a stage of the study is trained on or a recipe was "
            f"optimised on; got {len(clashes)}, e.g. {', '.join(clashes[:3])}. Use other rows."
        )
