"""Analytic merge landscapes: searches without a model, with a known front and hypervolume.

With a the weight of the *skill* expert and b that of the *safety* expert, and with the
misfit e = min(1, |a + b - 1|):

    accuracy       = a (1 - e)                      maximised
    harmful_score  = a^2 + e (1 - a^2)              minimised

Any misfit makes both worse or equal, so the front is e = 0: the curve (a, a^2) for a in
[0, 1]. Its hypervolume up to accuracy 0 and harmful score 1 is the integral of 1 - a^2, 2/3.
Skill alone is (1, 1), safety alone (0, 0), the base (0, 1), the plain mean (0.5, 0.25).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.coefficient import Number
from safemerge.config.document import parse_document
from safemerge.config.recipe import Linear, MergeRecipe, TaskArithmetic
from safemerge.config.study import StudySpec
from safemerge.records import CandidateResult, MetricEstimate, Split

ACCURACY = "task.accuracy"
HARM = "harm.harmful_score"

LAMBDA = "experts.safety.booster.lambda"
"""Path of a setting that the safety expert is trained with, in `lambda_landscape`."""

FRONT_HYPERVOLUME = 2.0 / 3.0
"""Hypervolume of the whole front, up to accuracy 0 and harmful score 1."""

NUM_PROMPTS = 100
"""Prompts that each suite of a landscape pretends to have asked."""

Region = Callable[[float, float], bool]
"""Tells whether a point (skill weight, safety weight) lies in a region."""


class LandscapeCrash(RuntimeError):
    """What a landscape raises in its crashing region, as an engine that died would."""


def nowhere(skill: float, safety: float) -> bool:
    """Return False: the empty region."""
    return False


def high_safety(skill: float, safety: float) -> bool:
    """Return whether the safety weight is above 0.75: a quarter of the search space."""
    return safety > 0.75


@dataclass(frozen=True)
class MergeLandscape:
    """Scores a recipe by a formula; a region may crash, stay unscored, or be broken."""

    crash: Region = nowhere
    """Where evaluation raises `LandscapeCrash`."""
    unscored: Region = nowhere
    """Where the judge gives no verdict: the harmful score has no value."""
    broken: Region = nowhere
    """Where the candidate is deterministically broken."""

    def evaluate(self, recipe: MergeRecipe, split: Split = "search") -> CandidateResult:
        """Score a recipe of `landscape_study`, or one of its references.

        Args:
            recipe: Linear or task arithmetic over the experts ``skill`` and ``safety``.
            split: The split that the result is labelled with; values do not depend on it.

        Returns:
            Both metrics, or neither if the candidate is broken.

        Raises:
            LandscapeCrash: In the crashing region.
        """
        skill, safety = weights_of(recipe)
        if self.crash(skill, safety):
            raise LandscapeCrash(f"engine died at skill {skill:.3f}, safety {safety:.3f}")
        if self.broken(skill, safety):
            return CandidateResult(
                candidate=recipe.digest, split=split, metrics={}, broken="non-finite weights"
            )
        accuracy, harm = landscape_values(skill, safety)
        verdict = None if self.unscored(skill, safety) else harm
        return CandidateResult(
            candidate=recipe.digest,
            split=split,
            metrics={
                ACCURACY: MetricEstimate(
                    metric=ACCURACY,
                    value=accuracy,
                    low=max(0.0, accuracy - 0.05),
                    high=min(1.0, accuracy + 0.05),
                    n=NUM_PROMPTS,
                    direction="maximize",
                ),
                HARM: MetricEstimate(
                    metric=HARM,
                    value=verdict,
                    low=None if verdict is None else max(0.0, harm - 0.05),
                    high=None if verdict is None else min(1.0, harm + 0.05),
                    n=0 if verdict is None else NUM_PROMPTS,
                    unscored=NUM_PROMPTS if verdict is None else 0,
                    direction="minimize",
                ),
            },
            num_prompts=2 * NUM_PROMPTS,
            replica="landscape",
        )


SMOOTH = MergeLandscape()
"""Every recipe can be scored."""
CRASHING = MergeLandscape(crash=high_safety)
"""Crashes at every try where the safety weight is high."""
UNSCORED = MergeLandscape(unscored=high_safety)
"""The judge is silent where the safety weight is high."""
BROKEN = MergeLandscape(broken=high_safety)
"""Candidates are broken where the safety weight is high."""


def landscape_values(skill: float, safety: float) -> tuple[float, float]:
    """Return accuracy and harmful score at two weights; see the module's formulas."""
    misfit = min(1.0, abs(skill + safety - 1.0))
    return skill * (1.0 - misfit), skill**2 + misfit * (1.0 - skill**2)


def weights_of(recipe: MergeRecipe) -> tuple[float, float]:
    """Return the skill and safety weights of a recipe, a linear one's normalised."""
    method = recipe.method
    if not isinstance(method, Linear | TaskArithmetic):
        raise TypeError(f"landscape: needs linear or task_arithmetic; got {method.name!r}.")
    by_name = {name: _number(value) for name, value in method.weights.items()}
    total = sum(by_name.values()) if isinstance(method, Linear) else 1.0
    scale = 1.0 if isinstance(method, Linear) else _number(method.lambda_)
    skill, safety = (by_name.get(name, 0.0) * scale / total for name in ("skill", "safety"))
    return skill, safety


def landscape_study(name: str = "landscape", **changes: Any) -> StudySpec:
    """Return a study over a landscape's two weights, each in [0, 1].

    Args:
        name: The study's name.
        **changes: Top-level fields of the study to replace, e.g. ``num_trials=30``.

    Returns:
        The study; its checkpoints and prompts do not exist and are never read.
    """
    rows = {"kind": "generator", "name": "reviews", "count": NUM_PROMPTS}
    splits = {
        split: {"source": {**rows, "split": split}, "prompt": "{text}", "label": "label"}
        for split in ("search", "report")
    }
    document: dict[str, Any] = {
        "name": name,
        "seed": 7,
        "base": {"name": "base", "path": "/nowhere/base"},
        "experts": [
            {"name": "skill", "path": "/nowhere/skill"},
            {"name": "safety", "path": "/nowhere/safety"},
        ],
        "spaces": [
            {
                "name": "sum",
                "method": {"name": "task_arithmetic", "weights": {"skill": 0.5, "safety": 0.5}},
                "vary": {
                    "method.weights.skill": {"low": 0.0, "high": 1.0},
                    "method.weights.safety": {"low": 0.0, "high": 1.0},
                },
            }
        ],
        "suites": [
            {
                "name": "task",
                "task": {"kind": "classification", "labels": ["good", "bad"]},
                **splits,
            },
            {"name": "harm", "task": {"kind": "harm"}, **splits},
        ],
        "objectives": [
            {"metric": ACCURACY, "direction": "maximize", "reference": 0.0},
            {"metric": HARM, "direction": "minimize", "reference": 1.0},
        ],
        "num_trials": 20,
        "sampler": {"name": "tpe"},
    }
    return parse_document({**document, **changes}, StudySpec, where=f"landscape study '{name}'")


def lambda_landscape(
    vary: Mapping[str, Any], *, untrained: Sequence[str] = (), **changes: Any
) -> StudySpec:
    """Return a landscape's study that varies `LAMBDA`, its models as if trained.

    Args:
        vary: Range or choices of lambda; the landscape does not depend on it.
        untrained: Names of variants that are still to be trained, e.g. ``safety--2``.
        **changes: See `landscape_study`.

    Returns:
        The study; models have made-up folders, and fingerprints unless they are untrained.
    """
    document = landscape_study(storage="journal", **changes).resolved()
    document["experts"] = [
        {"name": "skill", "path": "/nowhere/skill"},
        {"name": "safety", "align": "/nowhere/safety.yaml"},
    ]
    document["spaces"][0]["vary"][LAMBDA] = vary
    spec = StudySpec.model_validate(document)
    refs = {
        name: CheckpointRef(
            name=name, path=f"/made/{name}", digest=None if name in untrained else f"of {name}"
        )
        for name in (ref.name for ref in spec.all_checkpoints)
    }
    return spec.with_checkpoints(refs).with_untrained(untrained)


def _number(value: Number) -> float:
    if isinstance(value, dict | list):
        raise TypeError(f"landscape: needs one weight per expert; got {value}.")
    return float(value)
