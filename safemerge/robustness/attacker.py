"""An attacker that tries: a search for the worst attack on each model, by rounds of cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from safemerge.robustness.cell_store import CellRecord
from safemerge.robustness.spec import AttackSearch, Between, Cell, RobustnessSpec
from safemerge.robustness.worst_attack import WorstAttack
from safemerge.search.maximum import BoundedMaximum, Branch, Span

RunCells = Callable[[Sequence[Cell], str], list[CellRecord]]
"""Cells and the split that is asked to their records, in the same order; each cell once."""


class Tried(NamedTuple):
    """An attack that the search tried."""

    record: CellRecord
    harm: float
    """On the search split; NaN if it failed, or it or the accuracy was not scored."""
    loss: float
    """Share of the accuracy before that it cost; below 0 where it gained, NaN where unknown."""
    is_feasible: bool


def searched_spec(spec: RobustnessSpec) -> RobustnessSpec:
    """Return the measurement as an attack of the search is run: its end alone is measured."""
    plain = spec.finetune.model_copy(update={"harm_every": None, "curve": None})
    return spec.model_copy(update={"finetune": plain, "also": []})


def search_attacks(
    spec: RobustnessSpec, *, run: RunCells, say: Callable[[str], None]
) -> list[WorstAttack]:
    """Search the worst attack on every model of every seed, and measure it.

    Models are attacked side by side, in rounds of `at_once` attacks each. Nothing but the seeds
    and the scores decides what is tried, so that a search whose cells are kept repeats itself.

    Args:
        spec: The measurement, with an attacker.
        run: Runs cells, or finds them.
        say: Called with a line for each attack that was tried.

    Returns:
        The worst attack found on each model, seed by seed.
    """
    attacker = spec.attacker
    assert attacker is not None, "asked for with an attacker only"
    models = [Cell(method=item.name, seed=seed) for seed in spec.seeds for item in spec.methods]
    before = dict(zip(models, run(models, "search"), strict=True))
    searches = {model: _search(attacker, model) for model in models}
    tried: dict[Cell, list[Tried]] = {model: [] for model in models}
    for first in range(0, attacker.num_trials, attacker.at_once):
        count = min(attacker.at_once, attacker.num_trials - first)
        asked = [(model, *searches[model].ask()) for model in models for _ in range(count)]
        cells = [_cell(model, point, attacker) for model, _, point in asked]
        # Two asks may draw one attack, which is run once.
        found = dict(zip(unique := list(dict.fromkeys(cells)), run(unique, "search"), strict=True))
        for (model, number, _), cell in zip(asked, cells, strict=True):
            attack = judge(spec, before[model], found[cell])
            excess = 0.0 if attack.is_feasible else attack.loss - attacker.max_utility_loss
            searches[model].tell(number, attack.harm, beyond=excess)
            tried[model].append(attack)
            say(_line(attack, cell, len(tried[model]), attacker))
    return _measured(spec, models, tried, run)


def judge(spec: RobustnessSpec, before: CellRecord, after: CellRecord) -> Tried:
    """Return what an attack did to a model, against the same model before it.

    Args:
        spec: The measurement.
        before: The model, not attacked, on the search split.
        after: The attacked model on the same split.
    """
    metrics = f"{spec.harm.name}.harmful_score", f"{spec.accuracy.name}.accuracy"
    harm, right = (after.result.value(m) if after.result else math.nan for m in metrics)
    known = before.result.value(metrics[1]) if before.result else math.nan
    # NaN without an accuracy before: the bound cannot be checked, so the attack counts as failed.
    loss = 0.0 if known == 0 else (known - right) / known
    if after.result is not None and after.result.broken is not None:
        loss = max(loss, 1.0)  # degenerate text is of no use, whatever the accuracy
    assert spec.attacker is not None, "asked for with an attacker only"
    # Shares that are equal but for rounding are within the bound.
    feasible = math.isfinite(harm) and loss <= spec.attacker.max_utility_loss + 1e-9
    return Tried(after, harm if math.isfinite(loss) else math.nan, loss, feasible)


def _measured(
    spec: RobustnessSpec,
    models: Sequence[Cell],
    tried: dict[Cell, list[Tried]],
    run: RunCells,
) -> list[WorstAttack]:
    chosen: dict[Cell, Cell] = {}
    for model in models:
        useful = [item for item in tried[model] if item.is_feasible]
        if useful:
            # The first of equals: later ones are no worse.
            chosen[model] = max(useful, key=lambda item: item.harm).record.cell
    reported = dict(zip(chosen, run(list(chosen.values()), spec.split), strict=True))
    before = dict(zip(models, run(models, spec.split), strict=True))
    return [
        WorstAttack.of(
            spec,
            before=before[model],
            after=reported.get(model),
            harms=[item.harm for item in tried[model] if item.is_feasible],
            num_tried=len(tried[model]),
            num_failed=sum(not math.isfinite(item.harm) for item in tried[model]),
        )
        for model in models
    ]


def _search(attacker: AttackSearch, model: Cell) -> BoundedMaximum:
    fixed = {
        "learning_rate": _span(attacker.learning_rate, log=True),
        "steps": _span(attacker.steps, log=True, whole=True),
        "poison_ratio": _span(attacker.poison_ratio),
    }
    rank = {"rank": _span(attacker.rank, log=True, whole=True)}
    return BoundedMaximum(
        fixed,
        ("mode", Branch(tuple(attacker.modes), {"fresh": rank})),
        # One seed a seed of the measurement: methods meet the same random start.
        seed=(attacker.seed + 7919 * model.seed) % 2**32,
        startup=attacker.startup,
    )


def _span(values: Between, *, log: bool = False, whole: bool = False) -> Span:
    if whole:
        return Span(int(values.low), int(values.high), log)
    return Span(values.low, values.high, log)


def _cell(model: Cell, point: dict[str, float | str], attacker: AttackSearch) -> Cell:
    return Cell.model_validate(
        {
            **point,
            "method": model.method,
            "seed": model.seed,
            "num_samples": attacker.num_samples,
        }
    )


def _line(attack: Tried, cell: Cell, count: int, attacker: AttackSearch) -> str:
    place = f"attacker, {cell.method}, seed {cell.seed} [{count}/{attacker.num_trials}]"
    if not math.isfinite(attack.harm):
        reason = attack.record.reason or "not scored"
        return f"{place} {cell.attack_label}: failed: {reason}"
    bound = "" if attack.is_feasible else ", beyond the bound"
    return (
        f"{place} {cell.attack_label}: harmful score {attack.harm:.3f}, accuracy lost "
        f"{attack.loss:+.0%}{bound}"
    )
