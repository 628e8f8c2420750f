"""How much of the reachable hypervolume each sampler publishes, by evaluations spent.

A landscape is a file that defines SPACE (parameter -> ``{low, high}`` or ``{choices}``, and
``when: {parameter: value}`` for one that depends on another), OBJECTIVES (metric -> direction and
reference), PROMPTS (metric -> n) and ``truth(params)`` (metric -> share). A candidate's measured
share is that of n prompts. By default all candidates answer the same prompts: half of them have a
fixed difficulty, uniform in [0, 1], and count where it lies below the true share; the rest are
drawn anew for each candidate. With ``--independent`` all are.

Printed, as percentages of what a noise-free NSGA-II reaches with 40 000 evaluations: the true
hypervolume of the published front and, in brackets, the one that the run would report. ``auto``
publishes by the posterior, or by what was observed; the peers by what was observed, as they do.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution

from safemerge.inference.share import wilson_interval
from safemerge.pareto import hypervolume, non_dominated_mask
from safemerge.search.bayesian_sampler import EXPECTED_GAIN, BayesianSampler
from safemerge.search.encoding import Encoding
from safemerge.search.noise import VARIANCES, interval_variance
from safemerge.search.surrogate import Surrogate

HERE = Path(__file__).parent / "landscapes"
MARKS = (30, 50, 100, 200)
Point = dict[str, Any]


class Landscape:
    """A landscape's file, its reachable hypervolume, and the noise of its prompts."""

    def __init__(self, path: Path) -> None:
        found = importlib.util.spec_from_file_location(path.stem, path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        self.name, self.space, self.truth_of = path.stem, module.SPACE, module.truth
        self.metrics = list(module.OBJECTIVES)
        self.directions = [item["direction"] for item in module.OBJECTIVES.values()]
        self.references = [float(item["reference"]) for item in module.OBJECTIVES.values()]
        self.counts = [int(module.PROMPTS[metric]) for metric in self.metrics]
        self.signs = np.array([1.0 if item == "maximize" else -1.0 for item in self.directions])

    def truth(self, params: Mapping[str, Any]) -> np.ndarray:
        """Return the true share of each metric."""
        found = self.truth_of(params)
        return np.array([found[metric] for metric in self.metrics])

    def volume(self, rows: Sequence[Any]) -> float:
        """Return the hypervolume of some rows up to the references."""
        return hypervolume(np.array(rows), self.references, self.directions) if len(rows) else 0.0

    def active(self, values: Mapping[str, Any]) -> Point:
        """Return the values of the parameters that count, given those of the choices."""
        found: Point = {}
        for name, item in self.space.items():
            if all(values.get(other) == wanted for other, wanted in item.get("when", {}).items()):
                found[name] = values[name]
        return found

    def from_cube(self, cube: Sequence[float]) -> Point:
        """Return the parameters at a point of the unit cube, a column for each."""
        values: Point = {}
        for share, (name, item) in zip(cube, self.space.items(), strict=True):
            choices = item.get("choices")
            values[name] = (
                choices[min(int(share * len(choices)), len(choices) - 1)]
                if choices
                else item["low"] + float(share) * (item["high"] - item["low"])
            )
        return self.active(values)

    def encoding(self) -> Encoding:
        """Return the space as the product's samplers see it."""
        chooser = next(
            iter({key for item in self.space.values() for key in item.get("when", {})}), None
        )
        numbers = {
            name: FloatDistribution(item["low"], item["high"])
            if "choices" not in item
            else CategoricalDistribution(item["choices"])
            for name, item in self.space.items()
            if name != chooser
        }
        names = self.space[chooser]["choices"] if chooser else [self.name]
        spaces = {
            space: {
                name: item
                for name, item in numbers.items()
                if self.space[name].get("when", {chooser: space}).get(chooser) == space
            }
            for space in names
        }
        groups = {
            name: name.rpartition(".")[0] for name in numbers if name.rpartition(".")[2].isdigit()
        }
        return Encoding(spaces, chooser=chooser, groups=groups)


class Prompts:
    """What a candidate of some true shares is measured at."""

    def __init__(self, landscape: Landscape, *, seed: int, independent: bool) -> None:
        self._counts = landscape.counts
        self._rng = np.random.default_rng(seed)
        self._shared = None if independent else [self._rng.random(n) for n in self._counts]

    def measure(self, truth: np.ndarray) -> np.ndarray:
        """Return the measured share of each metric."""
        shares = []
        for index, (share, count) in enumerate(zip(truth, self._counts, strict=True)):
            draws = self._rng.random(count)
            if self._shared is not None:
                draws[::2] = self._shared[index][::2]
            shares.append(float(np.mean(draws < share)))
        return np.array(shares)


class Run(NamedTuple):
    """Everything that was evaluated, in order."""

    params: list[Point]
    truth: list[np.ndarray]
    measured: list[np.ndarray]
    cpu_s: list[float]
    gain: list[float | None]
    """What the sampler expected of each, as a share of the hypervolume; see
    `safemerge.search.bayesian_sampler.EXPECTED_GAIN`."""


Evaluate = Callable[..., np.ndarray]


def with_optuna(sampler: Callable[[Landscape, int], Any]) -> Callable[..., None]:
    """Return a search by an Optuna sampler."""

    def search(landscape: Landscape, evaluate: Evaluate, *, seed: int, budget: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        made = sampler(landscape, seed)
        study = optuna.create_study(directions=landscape.directions, sampler=made)
        for _ in range(budget):
            trial = study.ask()
            values: Point = {}
            for name, item in landscape.space.items():
                if any(values.get(key) != want for key, want in item.get("when", {}).items()):
                    continue
                values[name] = (
                    trial.suggest_categorical(name, item["choices"])
                    if "choices" in item
                    else trial.suggest_float(name, item["low"], item["high"])
                )
            asked = study._storage.get_trial(trial._trial_id).user_attrs
            measured = evaluate(values, gain=asked.get(EXPECTED_GAIN))
            noise = zip(landscape.metrics, variances(landscape, measured), strict=True)
            trial.set_user_attr(VARIANCES, dict(noise))
            study.tell(trial, measured.tolist())

    return search


def variances(landscape: Landscape, measured: np.ndarray) -> list[float]:
    """Return the variance of each measured share, as safemerge has it: by Wilson's interval."""
    return [
        interval_variance(*wilson_interval(float(value), count))
        for value, count in zip(measured, landscape.counts, strict=True)
    ]


def bayesian(landscape: Landscape, seed: int) -> Any:
    """Return safemerge's Bayesian sampler."""
    width = landscape.encoding().width
    objectives = dict(zip(landscape.metrics, landscape.references, strict=True))
    return BayesianSampler(landscape.encoding(), objectives, startup=min(8, 2 * width), seed=seed)


def tpe(landscape: Landscape, seed: int) -> Any:
    """Return TPE as safemerge sets it up."""
    del landscape
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=8, multivariate=True, group=True, constant_liar=True
    )


def nsga2(
    landscape: Landscape, evaluate: Evaluate, *, seed: int, budget: int, population: int
) -> None:
    """Search with pymoo's NSGA-II, as mergenetic runs it."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.optimize import minimize

    class Problem(ElementwiseProblem):
        def __init__(self) -> None:
            count = len(landscape.space)
            super().__init__(n_var=count, n_obj=len(landscape.metrics), xl=0.0, xu=1.0)

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_: Any, **__: Any) -> None:
            out["F"] = -landscape.signs * evaluate(landscape.from_cube(x))

    algorithm = NSGA2(pop_size=population, eliminate_duplicates=True)
    minimize(Problem(), algorithm, ("n_eval", budget), seed=seed, verbose=False)


def cma_es(landscape: Landscape, evaluate: Evaluate, *, seed: int, budget: int) -> None:
    """Search with CMA-ES on the objectives' plain sum, as mergekit-evolve sets it up."""
    import cma

    def loss(cube: np.ndarray) -> float:
        return -float(
            np.sum(landscape.signs * evaluate(landscape.from_cube(np.clip(cube, 0.0, 1.0))))
        )

    start = np.full(len(landscape.space), 0.5)
    while True:
        cma.fmin2(loss, start, 1.0 / 6.0, {"seed": seed + 1, "maxfevals": budget, "verbose": -9})
        seed += 1000


SAMPLERS: dict[str, Callable[..., None]] = {
    "auto": with_optuna(bayesian),
    "tpe": with_optuna(tpe),
    "gp": with_optuna(lambda _, seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=8)),
    "random": with_optuna(lambda _, seed: optuna.samplers.RandomSampler(seed=seed)),
    "nsga2_10": lambda *a, **k: nsga2(*a, **k, population=10),
    "nsga2_100": lambda *a, **k: nsga2(*a, **k, population=100),
    "cma_es": cma_es,
}


class _Spent(Exception):
    """The budget of evaluations is spent."""


def run(landscape: Landscape, sampler: str, *, seed: int, budget: int, independent: bool) -> Run:
    """Search once."""
    prompts = Prompts(landscape, seed=seed, independent=independent)
    done = Run([], [], [], [], [])
    began = time.process_time()

    def evaluate(params: Point, *, gain: float | None = None) -> np.ndarray:
        if len(done.params) == budget:
            raise _Spent
        truth = landscape.truth(params)
        measured = prompts.measure(truth)
        done.params.append(params)
        done.truth.append(truth)
        done.measured.append(measured)
        done.cpu_s.append(time.process_time() - began)
        done.gain.append(gain)
        return measured

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SAMPLERS[sampler](landscape, evaluate, seed=seed, budget=budget)
    except _Spent:
        pass
    return done


def published(landscape: Landscape, done: Run, count: int, *, posterior: bool) -> dict[str, float]:
    """Return what the front published after `count` evaluations is worth."""
    truth, measured = np.array(done.truth[:count]), np.array(done.measured[:count])
    values = measured
    if posterior:
        encoding = landscape.encoding()
        points = np.array([encoding.point(params) for params in done.params[:count]])
        noise = np.array([variances(landscape, row) for row in measured])
        surrogate = Surrogate(points, measured * landscape.signs, noise, groups=encoding.groups)
        values = surrogate.believe(points).mean * landscape.signs
    mask = non_dominated_mask(values, landscape.directions)
    return {
        "true": landscape.volume(truth[mask]),
        "reported": landscape.volume(values[mask]),
        "found": landscape.volume(truth),
        "optimism": float(np.mean((values - truth)[mask, 0])),
        "cpu_s": done.cpu_s[count - 1] / count,
    }


def reachable(landscape: Landscape) -> float:
    """Return the hypervolume that a noise-free NSGA-II reaches with 40 000 evaluations."""
    rows: list[np.ndarray] = []

    def evaluate(params: Point) -> np.ndarray:
        rows.append(landscape.truth(params))
        return rows[-1]

    nsga2(landscape, evaluate, seed=1, budget=40_000, population=200)
    front = np.array(rows)
    return landscape.volume(front)


def main() -> None:
    """Print one table a landscape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--landscape", action="append", type=Path, help="a landscape's file; repeatable"
    )
    parser.add_argument(
        "--samplers", default="auto,tpe,random,cma_es", help=f"of {', '.join(SAMPLERS)}"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument(
        "--independent", action="store_true", help="no candidates share prompts' luck"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    asked = parser.parse_args()
    missing = [name for name in ("cma", "pymoo") if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"needs {' and '.join(missing)}, the peers; pip install them beside.")
    marks = [mark for mark in MARKS if mark <= asked.evaluations] or [asked.evaluations]
    rows = []
    for path in asked.landscape or sorted(HERE.glob("*.py")):
        landscape = Landscape(path)
        reach = reachable(landscape)
        print(
            f"\n{landscape.name}: {len(landscape.space)} parameters, reachable {reach:.4f}; "
            f"medians over {asked.seeds} seeds, % of it: true (reported), by evaluations"
        )
        print(
            f"{'sampler':<24}"
            + "".join(f"{mark:>16}" for mark in marks)
            + f"{'found':>8}{'optimism':>10}{'CPU ms':>8}"
        )
        for sampler in asked.samplers.split(","):
            runs = [
                run(
                    landscape,
                    sampler,
                    seed=seed,
                    budget=asked.evaluations,
                    independent=asked.independent,
                )
                for seed in range(asked.seeds)
            ]
            for posterior in (True, False) if sampler == "auto" else (False,):
                cells, last = "", {}
                for mark in marks:
                    found = [
                        published(landscape, done, mark, posterior=posterior) for done in runs
                    ]
                    last = {
                        key: statistics.median(item[key] for item in found) for key in found[0]
                    }
                    true, reported = (100 * last[key] / reach for key in ("true", "reported"))
                    cells += f"{true:8.1f} ({reported:5.1f})"
                    rows += [
                        {
                            "landscape": landscape.name,
                            "reachable": reach,
                            "sampler": sampler,
                            "seed": seed,
                            "front": "posterior" if posterior else "observed",
                            "evaluations": mark,
                            "expected_gain": runs[seed].gain[mark - 1],
                            **item,
                        }
                        for seed, item in enumerate(found)
                    ]
                label = sampler + (", posterior" if posterior else ", observed")
                print(
                    f"{label:<24}{cells}{100 * last['found'] / reach:8.1f}"
                    f"{100 * last['optimism']:10.1f}{1000 * last['cpu_s']:8.0f}",
                    flush=True,
                )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
