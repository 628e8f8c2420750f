"""Why a point of a run is as it is: the same recipe without each of its parts, evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from safemerge.api.declared import StrPath
from safemerge.api.evaluate import over_recipe, resolved_recipe
from safemerge.api.pick import pick_point, published_front
from safemerge.api.prepare import preflight, resolve_study
from safemerge.api.progress import Pace, Progress, Say
from safemerge.api.run import Run
from safemerge.api.stored import stored_study
from safemerge.config.ablation import (
    MAX_SHAPLEY_PARENTS,
    Variant,
    coalitions,
    parents_of,
    without_layers,
    without_operators,
    without_parents,
)
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.errors import UserError
from safemerge.files import disk_errors
from safemerge.object_store import is_url, shown_url
from safemerge.records import CandidateResult, TrialRecord
from safemerge.reports.attribution import (
    Attribution,
    AttributionMerge,
    Part,
    attribution_of,
    merges_of,
)
from safemerge.reports.run import Run as StoredRun
from safemerge.reports.run import load_run
from safemerge.store import RunStore

Look = Literal["parents", "operators", "layers", "shapley"]
"""What is looked at."""

LOOKS: tuple[Look, ...] = get_args(Look)


@dataclass(frozen=True)
class AttributionPlan:
    """What an attribution takes, before anything is started."""

    trial: TrialRecord
    """The point."""
    parents: tuple[str, ...]
    parts: tuple[Part, ...]
    sets: Mapping[frozenset[str], str]
    """Digest of the recipe of each set of parents; empty without Shapley values."""
    recipes: Mapping[str, MergeRecipe]
    """Every recipe whose scores are needed, by digest, the point's own left out."""
    known: Mapping[str, CandidateResult]
    """Scores that the run has already, by digest."""
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> list[MergeRecipe]:
        """Recipes still to be evaluated."""
        return [recipe for key, recipe in self.recipes.items() if key not in self.known]


def attribute(
    run: Run | StrPath,
    *,
    pick: str = "knee",
    looks: Iterable[Look] = LOOKS,
    progress: Say | None = None,
) -> Attribution:
    """Say which parts of a merge bring its harm and carry its skill.

    The picked point's recipe is evaluated without each of its parents, operators and groups of
    layers, on the prompts of the search, and compared with the point's own scores prompt by
    prompt. With up to six parents every set of them is evaluated too, for Shapley values. Each
    merge is evaluated once: scores are kept in the run's ``attribution.jsonl``, the outcome in
    ``attribution/TRIAL.json``, and a call that was interrupted continues.

    Args:
        run: A run or its folder; data and models must be as they were.
        pick: ``knee``, ``safest``, ``best:METRIC`` or the number of any trial with a result.
        looks: Some of ``parents``, ``operators``, ``layers``, ``shapley``; all if left out.
        progress: Called with lines of progress, e.g. `print`; the log if left out.

    Returns:
        Effects with 95 % intervals and p-values after Holm's correction, and the significant
        ones in words. The point was chosen for its scores on these prompts, so effects are
        somewhat too favourable to what it has.

    Raises:
        UserError: If there is no such point, or data, models or environment are wrong.
        EngineError: If the engine failed; finished merges are kept.
    """
    folder = _folder_of(run)
    lines = Progress(progress)
    store = RunStore(folder)
    plan = plan_attribution(folder, pick=pick, looks=looks)
    for note in plan.notes:
        lines.say(f"note: {note}")
    with store.locked():
        if plan.missing:
            _evaluate(stored_study(str(folder), lines), store, plan, lines)
        found = _found(store, plan)
        with disk_errors(folder):
            store.write_json(f"attribution/{plan.trial.number}.json", found)
    return found


def _folder_of(run: Run | StrPath) -> Path:
    if is_url(run):
        raise UserError(
            f"{shown_url(str(run))}: must be a run's folder, which keeps what is found; got a "
            "URL. Copy it to a folder of this machine first."
        )
    return run.folder if isinstance(run, Run) else Path(run)


def plan_attribution(
    run: Run | StrPath, *, pick: str = "knee", looks: Iterable[Look] = LOOKS
) -> AttributionPlan:
    """Say which merges an attribution takes, and which of them the run has scores of.

    Args:
        run: See `attribute`.
        pick: See `attribute`.
        looks: See `attribute`.

    Raises:
        UserError: If there is no such point, or nothing to look at.
    """
    folder, wanted = _folder_of(run), list(looks)
    for look in wanted:
        if look not in LOOKS:
            raise UserError(f"attribute: looks must be of {', '.join(LOOKS)}; got {look!r}.")
    stored = load_run(folder)
    trial = _picked(stored, pick)
    recipe = MergeRecipe.model_validate(trial.recipe)
    if trial.interpolated:
        raise UserError(
            f"{folder}: trial {trial.number} merges weights between two trained models, an "
            "estimate. Pick a trial whose models were trained."
        )
    parents = parents_of(recipe)
    variants: list[Variant] = []
    notes: list[str] = []
    if "parents" in wanted:
        variants += without_parents(recipe)
    if "operators" in wanted:
        variants += without_operators(recipe)
    if "layers" in wanted:
        variants += without_layers(recipe, num_layers=_num_layers(stored.spec, recipe))
    sets: dict[frozenset[str], MergeRecipe] = {}
    if "shapley" in wanted and len(parents) > MAX_SHAPLEY_PARENTS:
        notes.append(
            f"no Shapley values: they are for up to {MAX_SHAPLEY_PARENTS} parents, and the point "
            f"has {len(parents)}"
        )
    elif "shapley" in wanted and parents:
        sets = coalitions(recipe)
    for item in variants:
        if item.recipe is None:
            notes.append(f"not without {item.kind} {item.name}: {item.reason}")
    made = [item.recipe for item in variants if item.recipe is not None]
    recipes = {item.digest: item for item in [*made, *sets.values()]}
    # The point's digest is the one that its answers carried.
    own = {recipe.digest, trial.candidate}
    return AttributionPlan(
        trial=trial,
        parents=tuple(parents),
        parts=tuple(_part(item) for item in variants),
        sets={kept: item.digest for kept, item in sets.items()},
        recipes={key: item for key, item in recipes.items() if key not in own},
        known={**_scored(stored), **_kept(RunStore(folder)), recipe.digest: _result(trial)},
        notes=tuple(notes),
    )


def _part(variant: Variant) -> Part:
    digest = None if variant.recipe is None else variant.recipe.digest
    return Part(kind=variant.kind, name=variant.name, candidate=digest, problem=variant.reason)


def _picked(stored: StoredRun, pick: str) -> TrialRecord:
    if pick.isascii() and pick.isdigit():
        found = stored.point(int(pick)).trial
    else:
        point = pick_point(
            published_front(stored), pick, spec=stored.spec, where=str(stored.folder)
        )
        found = next(trial for trial in stored.trials if trial.number == point.number)
    if found.result is None or found.result.broken or not found.result.scores:
        raise UserError(
            f"{stored.folder}: trial {found.number} must have scores of each prompt and not be "
            f"broken; got {found.reason or 'none'}. Pick another trial."
        )
    return found


def _result(trial: TrialRecord) -> CandidateResult:
    assert trial.result is not None, "checked when it was picked"
    return trial.result


def _scored(stored: StoredRun) -> dict[str, CandidateResult]:
    return {
        trial.candidate: trial.result
        for trial in stored.trials
        if trial.result is not None and (trial.result.scores or trial.result.broken)
    }


def _kept(store: RunStore) -> dict[str, CandidateResult]:
    return {item.candidate: item.result for item in merges_of(store).read()}


def _num_layers(spec: StudySpec, recipe: MergeRecipe) -> int:
    """Decoder layers of the base; not looked at where the recipe has groups of its own."""
    if recipe.layer_groups:
        return 1
    from safemerge.weights.adapter import open_checkpoint

    path = recipe.base.path or spec.base.path
    if path is None:
        raise UserError(
            f"attribute: the base '{recipe.base.name}' must be a folder, for its number of "
            "layers; got none. Look at parents and operators only."
        )
    return max(1, open_checkpoint(path).num_layers)


def _found(store: RunStore, plan: AttributionPlan) -> Attribution:
    stored = load_run(store.folder)
    own = MergeRecipe.model_validate(plan.trial.recipe).digest
    results = {**plan.known, **_kept(store), own: _result(plan.trial)}
    return attribution_of(
        stored.spec,
        _result(plan.trial),
        trial=plan.trial.number,
        label=plan.trial.label,
        parts=plan.parts,
        sets=plan.sets,
        parents=plan.parents,
        results=results,
    )


def _evaluate(spec: StudySpec, store: RunStore, plan: AttributionPlan, lines: Progress) -> None:
    """Evaluate what is missing on the search split, and keep each result at once."""
    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.evaluator import Evaluator
    from safemerge.distributed.ingredient import fetch_hub_models

    missing = plan.missing
    replicas = max(1, min(spec.evaluator.max_replicas, len(missing)))
    fewest = min(spec.evaluator.min_replicas, replicas)
    evaluator = spec.evaluator.model_copy(
        update={"min_replicas": fewest, "max_replicas": replicas}
    )
    point = MergeRecipe.model_validate(plan.trial.recipe)
    spec = over_recipe(spec, point).model_copy(update={"evaluator": evaluator, "rung": None})
    fetch_hub_models(spec.all_checkpoints)
    suites = preflight(spec, lines).suites
    with ExitStack() as stack:
        resolved = resolve_study(spec, suites, lines, stack=stack)
        chosen = [resolved_recipe(resolved, recipe) for recipe in missing]
        stack.enter_context(ray_cluster())
        lines.say(
            f"{plan.trial.label}: {len(missing)} merges to evaluate, "
            f"{len(plan.recipes) - len(missing)} scored already"
        )
        lines.say("starting an evaluator replica (about 30 to 60 s)")
        up = stack.enter_context(Evaluator(resolved, app=f"safemerge-attribute-{spec.name}"))
        record_merges(store, missing, up.score_all(chosen, "search"), lines)


def record_merges(
    store: RunStore,
    recipes: Sequence[MergeRecipe],
    results: Iterable[CandidateResult],
    lines: Progress,
) -> None:
    """Append each result to ``attribution.jsonl`` as it comes.

    Args:
        store: The run.
        recipes: As planned: their digests are what results are found by.
        results: One each, in their order.
        lines: Where progress goes.
    """
    pace = Pace(len(recipes))
    kept = merges_of(store)
    for recipe, result in zip(recipes, results, strict=True):
        kept.append(
            AttributionMerge(candidate=recipe.digest, recipe=recipe.resolved(), result=result)
        )
        place, left = pace.step()
        lines.say(f"{place} merge {recipe.digest[:8]} ({result.timings.total_s:.1f} s){left}")
