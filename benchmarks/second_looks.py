"""Would further prompts for doubtful points beat further recipes?

The default sampler searches a landscape once for each seed. Of that run the first recipes are
taken, and a share of the budget goes to second looks: other prompts of the same number, for the
recipes whose membership of the front is most doubtful (chance p by the posterior, p (1 - p)
largest, chosen in four rounds). All ways spend the same prompts; with ``--part 0.5`` first and
second looks have half the prompts each, and there are twice as many. What is published is the
front of the posterior means of all that was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from search_efficiency import HERE, Landscape, Prompts, Run, reachable, run

from safemerge.inference.share import wilson_interval
from safemerge.pareto import non_dominated_mask
from safemerge.search.noise import interval_variance
from safemerge.search.surrogate import Surrogate

ROUNDS = 4
DRAWS = 400
FIGURES = ("true", "error", "optimism")


def looked_again(
    landscape: Landscape, done: Run, *, first: int, again: int, seed: int
) -> dict[str, float]:
    """Return what is published after some recipes and some second looks.

    Returns:
        True hypervolume, relative error of the reported one, and optimism of the first metric.
    """
    encoding, counts = landscape.encoding(), np.array(landscape.counts, dtype=float)
    truth, measured = np.array(done.truth[:first]), np.array(done.measured[:first])
    points = np.array([encoding.point(params) for params in done.params[:first]])
    asked = np.tile(counts, (first, 1))
    prompts = Prompts(landscape, seed=1000 + seed, independent=False)
    open_ = np.ones(first, dtype=bool)

    def fitted() -> Surrogate:
        noise = [
            [
                interval_variance(*wilson_interval(value, count))
                for value, count in zip(*row, strict=True)
            ]
            for row in zip(measured, asked, strict=True)
        ]
        return Surrogate(
            points, measured * landscape.signs, np.array(noise), groups=encoding.groups
        )

    for turn in range(ROUNDS if again else 0):
        draws = fitted().draw(points, count=DRAWS, seed=turn)
        ways = ["maximize"] * len(counts)
        chance = np.mean([non_dominated_mask(draw, ways) for draw in draws], axis=0)
        doubt = np.where(open_, chance * (1 - chance), -1.0)
        size = again * (turn + 1) // ROUNDS - again * turn // ROUNDS
        for index in np.argsort(-doubt, kind="stable")[:size]:
            found = prompts.measure(truth[index])
            measured[index] = (measured[index] * asked[index] + found * counts) / (
                asked[index] + counts
            )
            asked[index] += counts
            open_[index] = False
    values = fitted().believe(points).mean * landscape.signs
    mask = non_dominated_mask(values, landscape.directions)
    true, reported = landscape.volume(truth[mask]), landscape.volume(values[mask])
    optimism = float(np.mean((values - truth)[mask, 0]))
    return {"true": true, "error": reported / true - 1, "optimism": optimism}


def main() -> None:
    """Print one table a landscape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--landscape", action="append", type=Path, help="repeatable")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=100, help="with all prompts each")
    parser.add_argument("--shares", default="0,0.1,0.2", help="of the budget, for second looks")
    parser.add_argument("--part", type=float, default=1.0, help="of the prompts a look asks")
    parser.add_argument("--json", type=Path, help="write all figures here")
    asked = parser.parse_args()
    budget = round(asked.evaluations / asked.part)
    rows = []
    for path in asked.landscape or sorted(HERE.glob("*.py")):
        landscape = Landscape(path)
        reach = reachable(landscape)
        landscape.counts = [int(count * asked.part) for count in landscape.counts]
        print(f"\n{landscape.name}: published, % of reachable; error, %; optimism, points")
        runs = [
            run(landscape, "auto", seed=seed, budget=budget, independent=False)
            for seed in range(asked.seeds)
        ]
        for share in map(float, asked.shares.split(",")):
            again = round(share * budget)
            found = [
                looked_again(landscape, done, first=budget - again, again=again, seed=seed)
                for seed, done in enumerate(runs)
            ]
            of = {"landscape": landscape.name, "part": asked.part, "budget": budget}
            rows += [
                {**of, "share": share, "seed": seed, **item, "true": item["true"] / reach}
                for seed, item in enumerate(found)
            ]
            means = {key: statistics.mean(item[key] for item in found) for key in FIGURES}
            print(
                f"{share:6.0%}{100 * means['true'] / reach:8.1f}{100 * means['error']:8.1f}"
                f"{100 * means['optimism']:8.1f}",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
