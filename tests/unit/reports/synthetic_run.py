"""Synthetic runs, built by hand: a study with two objectives and one constraint."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from safemerge.config.study import StudySpec
from safemerge.front import assemble_front, front_trials, reference_trials
from safemerge.records import CandidateResult, MetricEstimate, Score, Timings, TrialRecord
from safemerge.reports.run import Run
from safemerge.store import RunStore

SKILL, HARM, LIMIT = "skill", "unsafe.harmful_score", "benign.over_refusal_rate"
KEYS = {
    "arithmetic": ("accuracy",),
    "reviews": ("accuracy", "unlabelled_rate"),
    "unsafe": ("harmful_score", "refusal_rate", "complied_rate", "other_rate", "incoherent_rate"),
    "benign": ("over_refusal_rate", "incoherent_rate"),
}
MAXIMIZED = {"accuracy", "refusal_rate"}
COUNTS = {"search": 120, "report": 400}


def study_document(**changes):
    def suite(name, task, label=None):
        source = {"kind": "generator", "name": "reviews", "count": 400, "seed": 1}
        data = {"label": label} if label else {}
        return {
            "name": name,
            "task": task,
            "search": {"source": {**source, "split": "search"}, **data},
            "report": {"source": {**source, "split": "report"}, **data},
        }

    labels = ["positive", "negative"]
    document = {
        "name": "demo",
        "seed": 7,
        "base": {"name": "smol", "path": "/models/smol", "digest": "b" * 16},
        "experts": [
            {"name": name, "path": f"/models/{name}", "digest": name[0] * 16}
            for name in ("aligned", "arithmetic", "reviews", "poisoned")
        ],
        "spaces": [
            {
                "name": "ties",
                "method": {
                    "name": "ties",
                    "weights": {"aligned": 1.0, "arithmetic": 0.5, "reviews": 0.5},
                    "density": 0.5,
                },
                "vary": {
                    "method.weights.aligned": {"low": 0.0, "high": 1.5},
                    "method.weights.arithmetic": {"low": 0.0, "high": 1.0},
                    "method.weights.reviews": {"low": 0.0, "high": 1.0},
                    "method.density": {"low": 0.1, "high": 1.0},
                    "method.lambda": {"low": 0.5, "high": 1.5},
                },
            }
        ],
        "suites": [
            suite("arithmetic", {"kind": "exact_match"}, "answer"),
            suite("reviews", {"kind": "classification", "labels": labels}, "label"),
            suite("unsafe", {"kind": "harm"}),
            suite("benign", {"kind": "over_refusal"}),
        ],
        "aggregates": {"skill": {"mean_of": ["arithmetic.accuracy", "reviews.accuracy"]}},
        "objectives": [
            {"metric": SKILL, "direction": "maximize", "reference": 0.0},
            {"metric": HARM, "direction": "minimize", "reference": 1.0},
        ],
        "constraints": [{"metric": LIMIT, "budget": 0.3}],
        "num_trials": 40,
    }
    return {**document, **changes}


def make_spec(**changes):
    return StudySpec.model_validate_json(json.dumps(study_document(**changes)))


def wilson(mean, n, z=1.959964):
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))


def estimate(metric, values, unscored=0, direction="maximize"):
    if not values:
        return MetricEstimate(
            metric=metric,
            value=None,
            low=None,
            high=None,
            n=0,
            unscored=unscored,
            direction=direction,
        )
    mean = sum(values) / len(values)
    low, high = wilson(mean, len(values))
    return MetricEstimate(
        metric=metric,
        value=mean,
        low=low,
        high=high,
        n=len(values),
        unscored=unscored,
        direction=direction,
    )


def make_result(candidate, split, scores, *, timings=None, broken=None, replica="evaluator-0"):
    """Aggregate hand-made scores: metrics of every suite, and ``skill``."""
    metrics = {}
    for suite, items in scores.items():
        for key in KEYS[suite]:
            values = [item.values[key] for item in items if key in item.values]
            name = f"{suite}.{key}"
            direction = "maximize" if key in MAXIMIZED else "minimize"
            metrics[name] = estimate(name, values, len(items) - len(values), direction)
    parts = [metrics.get("arithmetic.accuracy"), metrics.get("reviews.accuracy")]
    if all(part is not None and part.value is not None for part in parts):
        mean = sum(part.value for part in parts) / 2
        half = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / 2
        metrics["skill"] = MetricEstimate(
            metric="skill",
            value=mean,
            low=mean - half,
            high=mean + half,
            n=sum(part.n for part in parts),
            unscored=sum(part.unscored for part in parts),
            direction="maximize",
        )
    return CandidateResult(
        candidate=candidate,
        split=split,
        metrics=metrics,
        scores=scores,
        timings=timings or Timings(),
        num_prompts=sum(map(len, scores.values())),
        num_generated_tokens=20 * sum(map(len, scores.values())),
        broken=broken,
        replica=replica,
    )


@dataclass
class Synthetic:
    """Draws candidates whose true rates are given; samples share their difficulty."""

    seed: int = 0
    counts: dict = field(default_factory=lambda: dict(COUNTS))
    unscored: int = 2

    def scores(self, candidate_seed, split, *, skill, harm, refusal):
        found = {}
        rates = {
            "arithmetic": skill - 0.12,
            "reviews": skill + 0.12,
            "unsafe": harm,
            "benign": refusal,
        }
        for index, (suite, rate) in enumerate(rates.items()):
            count = self.counts[split]
            shared = np.random.default_rng([self.seed, index, split == "search"])
            own = np.random.default_rng([self.seed, index, split == "search", candidate_seed])
            noise = 0.75 * shared.standard_normal(count) + 0.66 * own.standard_normal(count)
            rank = noise.argsort().argsort() / count
            jitter = own.normal(0, 0.012)
            hits = rank < np.clip(rate + jitter, 0, 1)
            found[suite] = [
                self._score(
                    suite,
                    f"{suite}/{split}/{place:05d}",
                    bool(hit),
                    place < self.unscored and suite == "unsafe",
                )
                for place, hit in enumerate(hits)
            ]
        return found

    def _score(self, suite, sample_id, hit, unscored):
        if unscored:
            return Score(sample_id=sample_id, unscored="truncated before a verdict")
        values = dict.fromkeys(KEYS[suite], 0.0)
        values[KEYS[suite][0]] = float(hit)
        if suite == "unsafe":
            values["refusal_rate"], values["complied_rate"] = float(not hit), float(hit)
        return Score(sample_id=sample_id, values=values)

    def result(self, number, split, *, broken=None, candidate=None, **rates):
        generate = 20.0 + 7.0 * math.sin(number) + (25.0 if split == "report" else 0.0)
        timings = Timings(
            swap_s=0.6 + 0.02 * (number % 5),
            generate_s=generate,
            score_s=1.1,
            total_s=generate + 2.6,
        )
        return make_result(
            candidate or digest_of(number),
            split,
            self.scores(number, split, **rates),
            timings=timings,
            broken=broken,
            replica=f"evaluator-{number % 2}",
        )


def digest_of(number):
    return f"{number + 1:04d}cafe{(number * 2654435761) % 2**32:08x}"


def recipe_document(weights, **method):
    return {
        "base": {"name": "smol", "path": "/models/smol"},
        "experts": [{"name": name, "path": f"/models/{name}"} for name in weights],
        "method": {"name": "ties", "weights": weights, "density": 0.5, "lambda": 1.0, **method},
        "layer_groups": [],
        "dtype": "base",
        "seed": 7,
    }


def make_trial(
    number,
    result,
    *,
    role="sampled",
    label=None,
    state="COMPLETE",
    reason=None,
    params=None,
    recipe=None,
    feasible=None,
    minute=None,
):
    spec = make_spec()
    objectives, violations = {}, {}
    if result is not None and result.broken is not None:
        objectives, violations, feasible = {SKILL: 0.0, HARM: 1.0}, {"broken": 1.0}, False
        reason = f"broken: {result.broken}"
    elif result is not None:
        objectives = {item.metric: result.value(item.metric) for item in spec.objectives}
        violations = {LIMIT: result.value(LIMIT) - 0.3}
        if feasible is None:
            feasible = violations[LIMIT] <= 0
        if not feasible and reason is None:
            reason = f"{LIMIT} {result.value(LIMIT):.6g} exceeds its budget 0.3"
    minute = number if minute is None else minute
    return TrialRecord(
        number=number,
        role=role,
        label=label or f"trial {number}",
        state=state,
        reason=reason,
        space="ties" if role == "sampled" else None,
        params=params or {},
        recipe=recipe or recipe_document({"aligned": 1.0, "arithmetic": 0.5}),
        candidate=result.candidate if result is not None else digest_of(number),
        objectives=objectives,
        violations=violations,
        feasible=bool(feasible),
        result=result,
        started_at=f"2026-11-21T{4 + minute // 60:02d}:{minute % 60:02d}:00.000+00:00",
        finished_at=f"2026-11-21T{4 + minute // 60:02d}:{minute % 60:02d}:41.500+00:00",
    )


REFERENCES = {
    "smol": (0.44, 0.46, 0.05),
    "aligned": (0.43, 0.07, 0.19),
    "arithmetic": (0.66, 0.62, 0.02),
    "reviews": (0.68, 0.58, 0.02),
    "poisoned": (0.71, 0.86, 0.01),
    "mean": (0.60, 0.41, 0.06),
}


def true_rates(params):
    """A landscape with a real trade-off: alignment costs skill and brings refusals."""
    safe = params["method.weights.aligned"]
    sums = params["method.weights.arithmetic"]
    words = params["method.weights.reviews"]
    density, scale = params["method.density"], params["method.lambda"]
    task = 1 - math.exp(-2.2 * (sums + words) * scale)
    skill = 0.42 + 0.30 * task - 0.07 * safe**2 - 0.10 * (density - 0.5) ** 2
    harm = 0.05 + 0.62 * math.exp(-2.1 * safe * scale) + 0.10 * task * (1 - safe / 2)
    refusal = 0.02 + 0.16 * safe**2 * scale
    return {"skill": skill, "harm": min(harm, 0.97), "refusal": refusal}


def make_trials(num_sampled=40, *, synthetic=None, seed=3):
    synthetic = synthetic or Synthetic()
    generator = np.random.default_rng(seed)
    trials, rates_by_number = [], {}
    for number, (label, (skill, harm, refusal)) in enumerate(REFERENCES.items()):
        rates = {"skill": skill, "harm": harm, "refusal": refusal}
        rates_by_number[number] = rates
        trials.append(
            make_trial(
                number,
                synthetic.result(number, "search", **rates),
                role="reference",
                label=label,
                recipe=recipe_document({label: 1.0}),
            )
        )
    for number in range(len(REFERENCES), len(REFERENCES) + num_sampled):
        params = {
            "method.weights.aligned": float(generator.uniform(0, 1.5)),
            "method.weights.arithmetic": float(generator.uniform(0, 1)),
            "method.weights.reviews": float(generator.uniform(0, 1)),
            "method.density": float(generator.uniform(0.1, 1)),
            "method.lambda": float(generator.uniform(0.5, 1.5)),
        }
        recipe = recipe_document(
            {key.rsplit(".", 1)[1]: value for key, value in params.items() if "weights" in key},
            density=params["method.density"],
            **{"lambda": params["method.lambda"]},
        )
        rates = rates_by_number[number] = true_rates(params)
        if number % 17 == 11:
            trials.append(
                make_trial(
                    number,
                    None,
                    state="FAIL",
                    params=params,
                    recipe=recipe,
                    reason="evaluator replica died: out of memory",
                )
            )
            continue
        broken = "degenerate repetition in 61 % of answers" if number == 20 else None
        result = synthetic.result(number, "search", broken=broken, **rates)
        trials.append(make_trial(number, result, params=params, recipe=recipe))
    return trials, rates_by_number


def report_results(spec, trials, rates_by_number, *, synthetic=None):
    synthetic = synthetic or Synthetic()
    wanted = [*front_trials(spec, trials), *reference_trials(trials)]
    return {
        trial.candidate: synthetic.result(
            trial.number, "report", candidate=trial.candidate, **rates_by_number[trial.number]
        )
        for trial in wanted
    }


def make_run(trials, *, front=None, spec=None, folder="results/demo"):
    """A run as `load_run` would return it, without a disk."""
    return Run(
        folder=Path(folder),
        spec=spec or make_spec(),
        study_digest="d" * 16,
        provenance=None,
        trials=tuple(trials),
        front=front,
    )


def write_run(folder, *, num_sampled=40, publish=True, spec=None, trials=None, synthetic=None):
    """Write a whole synthetic run through the store, and return its folder."""
    spec = spec or make_spec()
    made, rates = make_trials(num_sampled, synthetic=synthetic)
    trials = made if trials is None else trials
    store = RunStore(folder).create(spec)
    for trial in trials:
        store.append(trial)
    if publish:
        store.write_front(
            assemble_front(
                spec,
                trials,
                report_results(spec, trials, rates, synthetic=synthetic),
                study_digest=store.study().digest,
            )
        )
    return folder
