"""Bringing Optuna's study back in line with ``trials.jsonl`` after a driver was killed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from safemerge.config.study import SearchSpace, StudySpec
from safemerge.provenance import utc_now
from safemerge.records import INTERRUPTED, TrialRecord
from safemerge.search.flight import FlyingTrial
from safemerge.search.noise import VARIANCES, variances
from safemerge.search.space import (
    SPACE_PARAMETER,
    optuna_distributions,
    optuna_params,
    parameter_name,
    recipe_at,
    settled,
    space_by_name,
)

NUMBER = "number"
"""Trial's user attribute: its number in the study, which counts the references too."""
ATTEMPT = "attempt"
"""How often the candidate crashed before."""
RETRY_OF = "retry_of"
"""Number of the trial that this one tries again."""
RETRIED = "retried"
"""Set on a failed trial that another one tries again; the two count once in the budget."""
START = "start"
"""Warm start that a trial stands for."""
REASON = "reason"
"""Why a trial failed, was pruned or is infeasible, for Optuna's dashboard."""

FIXED = "fixed_params"
"""Optuna's system attribute of a queued trial: its parameters."""


class Recovery:
    """Reconciles the two stores; ``trials.jsonl`` is the truth.

    Each step may be killed and run again: nothing finished is lost or evaluated twice.

    Args:
        spec: The study.
        study: Optuna's side of it.
        records: Every finished trial of the store.
        flying: What a driver without a storage of its own had in flight; see `FlightFile`.
    """

    def __init__(
        self,
        spec: StudySpec,
        study: optuna.Study,
        records: Iterable[TrialRecord],
        *,
        flying: Iterable[FlyingTrial] = (),
    ) -> None:
        self._spec = spec
        self._study = study
        every = list(records)
        self._sampled = sampled_records(every)
        finished = {record.number for record in every}
        self._flying = [item for item in flying if item.number not in finished]
        self._same = _by_values(self._sampled)
        self._distributions = {
            space.name: optuna_distributions(spec, space) for space in spec.spaces
        }
        self.interrupted: tuple[int, ...] = ()
        """Numbers of the trials found in flight, once `run` is exhausted."""

    def run(self) -> Iterator[TrialRecord]:
        """Reconcile.

        Yields:
            A FAIL record for every interrupted trial; it must be stored before the next one
            is taken.
        """
        self._finish_or_add_recorded()
        self._add_flying()
        for trial in self._trials(TrialState.RUNNING):
            live = self._live(trial)
            live.set_user_attr(RETRIED, True)
            live.set_user_attr(REASON, INTERRUPTED)
            if NUMBER in trial.user_attrs:
                yield self._interrupted(trial)
                self.interrupted += (trial.user_attrs[NUMBER],)
            self._study.tell(trial.number, state=TrialState.FAIL)
        self._enqueue_again()

    def _finish_or_add_recorded(self) -> None:
        trial_by_number = {
            trial.user_attrs[NUMBER]: trial
            for trial in self._trials()
            if NUMBER in trial.user_attrs
        }
        for record in self._sampled:
            trial = trial_by_number.get(record.number)
            if trial is None:
                self._study.add_trial(self._rebuilt(record))
            elif not trial.state.is_finished():
                live = self._live(trial)
                present = trial.constraints
                for metric, violation in record.violations.items():
                    if metric not in present:
                        live.set_constraint(metric, violation)
                if record.reason is not None:
                    live.set_user_attr(REASON, record.reason)
                if record.is_tried_again:
                    live.set_user_attr(RETRIED, True)
                live.set_user_attr(VARIANCES, variances(record))
                state = TrialState[record.state]
                self._study.tell(trial.number, self._values(record), state=state)

    def _add_flying(self) -> None:
        numbers = {trial.user_attrs.get(NUMBER) for trial in self._trials()}
        for item in self._flying:
            trial = self._running(item)
            if trial is not None and item.number not in numbers:
                self._study.add_trial(trial)

    def _running(self, item: FlyingTrial) -> FrozenTrial | None:
        """A running Optuna trial for what was in flight; None if it is of no space, or damaged."""
        space = next((found for found in self._spec.spaces if found.name == item.space), None)
        if space is None or set(space.vary) != set(item.params):
            return None
        attributes: dict[str, Any] = {NUMBER: item.number, ATTEMPT: item.attempt}
        if item.start is not None:
            attributes[START] = item.start
        if item.retry_of is not None:
            attributes[RETRY_OF] = item.retry_of
        try:
            started = datetime.fromisoformat(item.started_at)
            trial = create_trial(
                state=TrialState.RUNNING,
                params=optuna_params(self._spec, space, item.params),
                distributions=self._distributions[space.name],
                user_attrs=attributes,
            )
        except ValueError:
            return None
        trial.datetime_start = started.astimezone().replace(tzinfo=None)
        return trial

    def _enqueue_again(self) -> None:
        trials = self._trials()
        last_try = {
            trial.user_attrs[RETRY_OF]: trial.number
            for trial in trials
            if RETRY_OF in trial.user_attrs
        }
        for trial in trials:
            attributes = trial.user_attrs
            if trial.state != TrialState.FAIL or not attributes.get(RETRIED, False):
                continue
            if NUMBER in attributes:
                params, parent = trial.params, attributes[NUMBER]
                crashed = attributes.get(REASON) != INTERRUPTED
                attempt = attributes.get(ATTEMPT, 0) + crashed
            elif RETRY_OF in attributes:
                # Killed while a try again was being asked for: it keeps its place.
                params, parent = trial.system_attrs[FIXED], attributes[RETRY_OF]
                attempt = attributes.get(ATTEMPT, 0)
            else:
                continue
            if last_try.get(parent, -1) <= trial.number:
                start = {START: attributes[START]} if START in attributes else {}
                self._study.enqueue_trial(
                    params, user_attrs={RETRY_OF: parent, ATTEMPT: attempt, **start}
                )

    def _interrupted(self, trial: FrozenTrial) -> TrialRecord:
        space = self._space(trial)
        params = settled(
            space, {path: trial.params[parameter_name(space, path)] for path in space.vary}
        )
        recipe = recipe_at(self._spec, space, params)
        number = trial.user_attrs[NUMBER]
        started = trial.datetime_start
        return TrialRecord(
            number=number,
            role="sampled",
            label=f"trial {number}",
            state="FAIL",
            reason=INTERRUPTED,
            space=space.name,
            params=params,
            start=trial.user_attrs.get(START),
            recipe=recipe.resolved(),
            candidate=recipe.digest,
            started_at=started.astimezone(UTC).isoformat(timespec="milliseconds")
            if started
            else "",
            finished_at=utc_now(),
        )

    def _rebuilt(self, record: TrialRecord) -> FrozenTrial:
        """A finished Optuna trial for a record that Optuna lacks."""
        space = space_by_name(self._spec, record.space or "")
        same = self._same[_values_key(record)]
        earlier = [item for item in same if item.number < record.number and item.state == "FAIL"]
        later = [item for item in same if item.number > record.number]
        attributes: dict[str, Any] = {
            NUMBER: record.number,
            ATTEMPT: sum(item.reason != INTERRUPTED for item in earlier),
            VARIANCES: variances(record),
        }
        if record.reason is not None:
            attributes[REASON] = record.reason
        if record.start is not None:
            attributes[START] = record.start
        if earlier:
            attributes[RETRY_OF] = max(item.number for item in earlier)
        if record.state == "FAIL" and (later or record.is_tried_again):
            attributes[RETRIED] = True
        return create_trial(
            state=TrialState[record.state],
            values=self._values(record),
            params=optuna_params(self._spec, space, record.params),
            distributions=self._distributions[space.name],
            user_attrs=attributes,
            constraints=record.violations or None,
        )

    def _values(self, record: TrialRecord) -> list[float] | None:
        if record.state != "COMPLETE":
            return None
        return [record.objectives[item.metric] for item in self._spec.objectives]

    def _space(self, trial: FrozenTrial) -> SearchSpace:
        only = self._spec.spaces[0].name
        return space_by_name(self._spec, trial.params.get(SPACE_PARAMETER, only))

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _live(self, trial: FrozenTrial) -> optuna.Trial:
        return optuna.Trial(self._study, trial._trial_id)


def _by_values(
    records: Iterable[TrialRecord],
) -> dict[tuple[Any, ...], list[TrialRecord]]:
    # By values: a candidate's digest is another one once its models are trained.
    found: dict[tuple[Any, ...], list[TrialRecord]] = {}
    for record in records:
        found.setdefault(_values_key(record), []).append(record)
    return found


def _values_key(record: TrialRecord) -> tuple[Any, ...]:
    return record.space, tuple(sorted(record.params.items()))


def sampled_records(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that Optuna asked for.

    References are none, and what was trained at a trial's exact values is none either.
    """
    return [item for item in records if item.role == "sampled" and item.exact_of is None]


def finished_trials(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that ended by themselves, those that a killed driver left out."""
    return [record for record in records if record.reason != INTERRUPTED]
