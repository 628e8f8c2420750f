"""What each part of a merge contributes to its metrics: paired effects, Shapley values, words.

An effect is the picked point minus the same recipe without the part, over the prompts that both
answered. A Shapley value is the mean of a parent's effects over all orders in which the parents
could come (Shapley 1953); it is linear in the scores, so that each prompt has its own, and
interval and test are those of any paired difference. Over all parents they add up to the point
minus the recipe without parents.

References:
    Shapley, A value for n-person games, in Contributions to the Theory of Games II, 1953.
    Holm's correction holds over all effects and Shapley values of one point together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import factorial
from typing import Any, Literal

from pydantic import Field

from safemerge.config.base import StrictModel
from safemerge.config.metric import Direction, Metric, Unit, metrics_of
from safemerge.config.study import StudySpec
from safemerge.files import parse_stored
from safemerge.records import CandidateResult, Score
from safemerge.reports.comparison import PairedDifference, holm_corrected, paired_difference
from safemerge.reports.wording import change, change_word, joined
from safemerge.run_folder import RecordFile
from safemerge.store import RunStore

EffectKind = Literal["parent", "operator", "layers", "shapley"]
"""What was left out; ``shapley``: a parent's mean effect over all orders of the parents."""


class Part(StrictModel):
    """What was left out of the recipe."""

    kind: EffectKind
    name: str
    candidate: str | None = None
    """Digest of the recipe without it; None if there is none."""
    problem: str | None = None
    """Why it has no effects: the method cannot do without it, or what is left is broken."""


class Effect(StrictModel):
    """What a part contributes to a metric: the point minus the recipe without the part."""

    kind: EffectKind
    name: str
    metric: str
    direction: Direction
    unit: Unit = "share"
    value: float | None
    """In the metric's unit, a fraction for shares; None if no prompt has both verdicts."""
    low: float | None
    """Lower end of the 95 % interval, of this effect alone."""
    high: float | None
    n: int = Field(ge=0)
    """Prompts with a verdict on both sides."""
    left_out: int = Field(default=0, ge=0)
    """Prompts without one on some side."""
    p_value: float | None
    """Two-sided, of no effect; corrected for `num_comparisons` by Holm."""
    num_comparisons: int = 1
    verdict: Literal["better", "worse", "not significant"]
    """What the part makes the merge, on this metric."""


class Attribution(StrictModel):
    """Why a point of a run is as it is: a file of the folder ``attribution``."""

    trial: int
    label: str
    candidate: str
    """Digest of the point's recipe."""
    parents: list[str]
    """Models that it merges."""
    num_merges: int = Field(ge=0)
    """Recipes whose scores it rests on, beside the point itself."""
    num_prompts: int = Field(ge=0)
    """Of the search split."""
    parts: list[Part]
    effects: list[Effect]
    sentences: list[str]
    """What is significant, in words."""


class AttributionMerge(StrictModel):
    """A merge that was evaluated for an attribution: a line of ``attribution.jsonl``."""

    candidate: str
    """Digest of the recipe."""
    recipe: dict[str, Any]
    result: CandidateResult
    """On the search split."""


def merges_of(store: RunStore) -> RecordFile[AttributionMerge]:
    """Return a run's ``attribution.jsonl``, which need not exist yet."""
    return RecordFile(store.folder / "attribution.jsonl", AttributionMerge)


def read_attributions(store: RunStore) -> list[Attribution]:
    """Return what was found of a run's points, by trial number.

    Raises:
        StudyError: If a file is damaged.
    """
    files = (store.folder / "attribution").glob("*.json")
    found = [parse_stored(path.read_bytes(), Attribution, where=str(path)) for path in files]
    return sorted(found, key=lambda item: item.trial)


def attribution_of(
    spec: StudySpec,
    picked: CandidateResult,
    *,
    trial: int,
    label: str,
    parts: Sequence[Part],
    sets: Mapping[frozenset[str], str],
    parents: Sequence[str],
    results: Mapping[str, CandidateResult],
) -> Attribution:
    """Compare a point with its recipe without each of its parts.

    Args:
        spec: The study: objectives and constraints are compared.
        picked: The point on the search split.
        trial: Its number.
        label: Its name.
        parts: What was left out.
        sets: Digest of the recipe of each set of parents, for Shapley values; empty for none.
        parents: The models that the point merges.
        results: Search-split result by digest, the point's own among them.
    """
    known = metrics_of(spec)
    goals = [metric for metric in known.values() if metric.use in ("objective", "constraint")]
    found: list[tuple[EffectKind, str, PairedDifference]] = []
    measured: list[Part] = []
    for part in parts:
        result = None if part.candidate is None else results[part.candidate]
        if result is not None and result.broken is not None:
            # Degenerate text is scored, and can look safe: it says nothing about the part.
            part = part.model_copy(update={"problem": f"broken without it: {result.broken}"})
        measured.append(part)
        if result is not None and result.broken is None:
            pairs = _differences(picked, result, goals)
            found += [(part.kind, part.name, pair) for pair in pairs]
    if sets:
        for name in parents:
            part = _shapley_part(name, sets, results)
            measured.append(part)
            if part.problem is None:
                left, right = _shapley_sides(name, parents, sets, results)
                pairs = _differences(left, right, goals)
                found += [("shapley", name, pair) for pair in pairs]
    corrected = holm_corrected([pair for *_, pair in found])
    effects = [
        Effect(
            kind=kind,
            name=name,
            metric=pair.metric,
            direction=pair.direction,
            unit=pair.unit,
            value=pair.value,
            low=pair.low,
            high=pair.high,
            n=pair.n,
            left_out=pair.left_out,
            p_value=pair.p_value,
            num_comparisons=pair.num_comparisons,
            verdict=pair.verdict,  # type: ignore[arg-type]
        )
        for (kind, name, _), pair in zip(found, corrected, strict=True)
    ]
    digests = {part.candidate for part in parts if part.candidate is not None} | {*sets.values()}
    return Attribution(
        trial=trial,
        label=label,
        candidate=picked.candidate,
        parents=list(parents),
        num_merges=len(digests - {picked.candidate}),
        num_prompts=picked.num_prompts,
        parts=measured,
        effects=effects,
        sentences=list(_sentences(effects, goals)),
    )


def _differences(
    left: CandidateResult, right: CandidateResult, metrics: Sequence[Metric]
) -> Iterator[PairedDifference]:
    for metric in metrics:
        found = paired_difference(
            left,
            right,
            metric=metric.name,
            mean_of=metric.mean_of,
            direction=metric.direction,
        )
        if found.value is not None:
            yield found


def _shapley_part(
    name: str, sets: Mapping[frozenset[str], str], results: Mapping[str, CandidateResult]
) -> Part:
    broken = [digest for digest in sets.values() if results[digest].broken is not None]
    if not broken:
        return Part(kind="shapley", name=name)
    count = f"{len(broken)} of {len(sets)} merges of parents are broken"
    return Part(kind="shapley", name=name, problem=f"{count}: {results[broken[0]].broken}")


def _shapley_sides(
    name: str,
    parents: Sequence[str],
    sets: Mapping[frozenset[str], str],
    results: Mapping[str, CandidateResult],
) -> tuple[CandidateResult, CandidateResult]:
    """Return the mean results with and without a parent, whose difference is its value."""
    with_it, without_it = [], []
    n = len(parents)
    for kept, digest in sets.items():
        if name in kept:
            continue
        weight = factorial(len(kept)) * factorial(n - len(kept) - 1) / factorial(n)
        with_it.append((weight, results[sets[kept | {name}]]))
        without_it.append((weight, results[digest]))
    return _mean_result(with_it), _mean_result(without_it)


def _mean_result(parts: Sequence[tuple[float, CandidateResult]]) -> CandidateResult:
    """Mix results sample by sample; a sample that one of them lacks a value of is unscored."""
    first = parts[0][1]
    scores = {}
    for suite in dict.fromkeys(name for _, result in parts for name in result.scores):
        by_id = [
            {item.sample_id: item for item in result.scores.get(suite, ())} for _, result in parts
        ]
        mixed = []
        for sample in dict.fromkeys(sample for found in by_id for sample in found):
            items = [found.get(sample) for found in by_id]
            values = [{} if item is None else item.values for item in items]
            names = [key for key in values[0] if all(key in value for value in values)]
            group = next((item.group for item in items if item is not None), None)
            if not names:
                reason = "some merge has no verdict"
                mixed.append(Score(sample_id=sample, unscored=reason, group=group))
                continue
            means = {
                key: sum(
                    weight * value[key] for (weight, _), value in zip(parts, values, strict=True)
                )
                for key in names
            }
            mixed.append(Score(sample_id=sample, values=means, group=group))
        scores[suite] = mixed
    metrics = {name: item for _, result in parts for name, item in result.metrics.items()}
    return CandidateResult(
        candidate=first.candidate, split=first.split, metrics=metrics, scores=scores
    )


_NOUNS: Mapping[EffectKind, str] = {
    "parent": "parent",
    "operator": "operator",
    "layers": "group of layers",
}
_PLURALS: Mapping[EffectKind, str] = {
    "parent": "Parents",
    "operator": "Operators",
    "layers": "Layers",
}


def _sentences(effects: Sequence[Effect], metrics: Sequence[Metric]) -> Iterator[str]:
    """Say for each metric which parts are significant, and claim nothing else."""
    for metric in metrics:
        for kind in ("parent", "layers", "operator"):
            own = [item for item in effects if item.metric == metric.name and item.kind == kind]
            if kind == "parent":
                claimed = {item.name for item in own if item.verdict != "not significant"}
                own += [
                    item
                    for item in effects
                    if item.metric == metric.name
                    and item.kind == "shapley"
                    and item.verdict != "not significant"
                    and item.name not in claimed
                ]
            if own:
                yield _sentence(own, metric, kind)


def _sentence(effects: Sequence[Effect], metric: Metric, kind: EffectKind) -> str:
    found = []
    for verdict in ("worse", "better"):
        items = [item for item in effects if item.verdict == verdict]
        items.sort(key=lambda item: -abs(item.value or 0.0))
        if items:
            verb = _verb(metric, verdict, many=len(items) > 1)
            found.append(f"{joined([_named(item) for item in items])} {verb}")
    if not found:
        return f"{metric.name}: no {_NOUNS[kind]} has a significant effect."
    return f"{metric.name}: {_PLURALS[kind].lower()}: {'; '.join(found)}."


def _verb(metric: Metric, verdict: str, *, many: bool) -> str:
    one, several, rest = {
        ("harm", "worse"): ("brings", "bring", "the harm"),
        ("harm", "better"): ("takes", "take", "harm away"),
        ("skill", "worse"): ("costs", "cost", "skill"),
        ("skill", "better"): ("carries", "carry", "the skill"),
    }.get((metric.role or "", verdict), ("makes", "make", f"it {verdict}"))
    return f"{several if many else one} {rest}"


def _named(effect: Effect) -> str:
    value, low, high = (
        change(item, effect.unit) for item in (effect.value, effect.low, effect.high)
    )
    by = ", by its Shapley value" if effect.kind == "shapley" else ""
    return f"{effect.name} ({value}{change_word(effect.unit)} [{low}, {high}]{by})"
