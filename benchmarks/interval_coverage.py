"""How often the 95 % intervals that reports print hold the true value, by simulation.

    python benchmarks/interval_coverage.py                  # the figures of design/judging.md
    python benchmarks/interval_coverage.py --draws 5000     # a finer table

Each row draws data of a known truth, builds the interval as `safemerge` does, and counts. With
1 000 draws a coverage of 0.95 is known to 0.014, with 5 000 to 0.006. A row well below its nominal
value is an interval that is too narrow; above, one wider than it must be.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from safemerge.inference import (
    clustered_interval,
    group_sums,
    jackknife_interval,
    paired_mean_interval,
    paired_share_interval,
    spread,
    wilson_interval,
)

Ends = tuple[float, float]
NOMINAL = 0.95


class Design(NamedTuple):
    """One row: how data are drawn, and what the interval should hold."""

    interval: str
    design: str
    n: int
    """Samples, groups or repetitions: what the interval counts."""
    truth: float
    draw: Callable[[np.random.Generator], Ends]


def designs() -> Iterator[Design]:
    """Yield every row of the table."""
    for share in (0.05, 0.5):
        for n in (12, 40, 200):
            yield Design("Wilson", f"share {share:g}", n, share, _shares(share, n))
    for share in (0.05, 0.2, 0.5):
        for correlation in (0.1, 0.4, 0.8):
            for n in (3, 8, 30):
                text = f"share {share:g}, groups of 2 to 8, correlation {correlation:g}"
                yield Design("Wilson, grouped", text, n, share, _grouped(share, correlation, n))
    for n in (12, 60):
        yield Design("Bonett-Price", "0.3 against 0.2, same prompts", n, 0.1, _paired_shares(n))
    for n in (5, 12, 30):
        yield Design("paired t, 2 added", "graded, skewed", n, 0.0, _paired_skewed(n))
        yield Design("paired t, 2 added", "four in five equal", n, 0.0, _paired_sparse(n))
        yield Design("paired t, 2 added", "groups of 4 verdicts", n, 0.1, _paired_grouped(n))
    for n in (2, 3, 5):
        yield Design("Student, seeds", "normal", n, 0.0, _seeds(n))
    for n in (20, 100, 400):
        yield Design("jackknife", "perplexity, normal", n, math.exp(2), _perplexity(n))
        yield Design("jackknife", "perplexity, skewed", n, math.exp(2), _perplexity_skewed(n))
        yield Design("jackknife", "corpus F1", n, 0.6 / 0.85, _corpus_f1(n))
        yield Design("jackknife", "median", n, 1.0, _median(n))


def _shares(share: float, n: int) -> Callable[[np.random.Generator], Ends]:
    return lambda draw: wilson_interval(draw.binomial(n, share) / n, n)


def _grouped(share: float, correlation: float, n: int) -> Callable[[np.random.Generator], Ends]:
    """Shares of groups are beta-distributed; `correlation` is that of two samples of a group."""
    scale = (1 - correlation) / correlation

    def made(draw: np.random.Generator) -> Ends:
        sizes = draw.integers(2, 9, size=n)
        own = draw.beta(share * scale, (1 - share) * scale, size=n)
        labels = np.repeat(np.arange(n), sizes)
        values = draw.random(len(labels)) < own[labels]
        return clustered_interval(values.astype(float).tolist(), labels.tolist())

    return made


def _paired_shares(n: int) -> Callable[[np.random.Generator], Ends]:
    def made(draw: np.random.Generator) -> Ends:
        kinds = draw.multinomial(n, [0.18, 0.08, 0.74])
        return paired_share_interval(int(kinds[0]), int(kinds[1]), n)

    return made


def _mean_of(differences: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Ends:
    return paired_mean_interval([group_sums(differences)], weights=[1.0])


def _paired_skewed(n: int) -> Callable[[np.random.Generator], Ends]:
    return lambda draw: _mean_of(draw.beta(1, 4, size=n) - 0.2)


def _paired_sparse(n: int) -> Callable[[np.random.Generator], Ends]:
    return lambda draw: _mean_of((draw.random(n) < 0.2) * draw.uniform(-1, 1, size=n))


def _paired_grouped(n: int) -> Callable[[np.random.Generator], Ends]:
    def made(draw: np.random.Generator) -> Ends:
        ease = np.repeat(draw.beta(1, 1, size=n), 4)
        left = draw.random(4 * n) < 0.2 + 0.8 * ease
        right = draw.random(4 * n) < 0.0 + 1.0 * ease
        sums = group_sums(left.astype(float) - right, np.repeat(np.arange(n), 4).tolist())
        return paired_mean_interval([sums], weights=[1.0])

    return made


def _seeds(n: int) -> Callable[[np.random.Generator], Ends]:
    def made(draw: np.random.Generator) -> Ends:
        found = spread(draw.normal(size=n).tolist())
        return _both(found.low, found.high)

    return made


def _jackknifed(
    aggregate: Callable[[np.ndarray[tuple[int], np.dtype[np.intp]]], float],
    n: int,
    *,
    is_share: bool = False,
) -> Ends:
    _, low, high = jackknife_interval(
        lambda places: aggregate(np.asarray(places)), range(n), is_share=is_share
    )
    return _both(low, high)


def _both(low: float | None, high: float | None) -> Ends:
    if low is None or high is None:
        raise ValueError("an interval needs two or more groups or repetitions")
    return low, high


def _perplexity(n: int) -> Callable[[np.random.Generator], Ends]:
    def made(draw: np.random.Generator) -> Ends:
        nats = 2 + 0.8 * draw.normal(size=n)
        return _jackknifed(lambda places: math.exp(nats[places].mean()), n)

    return made


def _perplexity_skewed(n: int) -> Callable[[np.random.Generator], Ends]:
    def made(draw: np.random.Generator) -> Ends:
        nats = draw.gamma(1.0, 2.0, size=n)
        return _jackknifed(lambda places: math.exp(nats[places].mean()), n)

    return made


def _corpus_f1(n: int) -> Callable[[np.random.Generator], Ends]:
    """Two in five are positive; three in four of each kind are recognised."""

    def made(draw: np.random.Generator) -> Ends:
        truth = draw.random(n) < 0.4
        said = truth == (draw.random(n) < 0.75)
        both = truth & said
        return _jackknifed(
            lambda places: (
                2 * both[places].sum() / max(1, (truth[places].sum() + said[places].sum()))
            ),
            n,
            is_share=True,
        )

    return made


def _median(n: int) -> Callable[[np.random.Generator], Ends]:
    def made(draw: np.random.Generator) -> Ends:
        values = draw.lognormal(size=n)
        return _jackknifed(lambda places: float(np.median(values[places])), n)

    return made


def covered(design: Design, draws: int) -> tuple[float, float]:
    """Return coverage and mean width over seeded draws."""
    label = f"{design.interval} {design.design} {design.n}"
    draw = np.random.default_rng(zlib.crc32(label.encode()))
    ends = np.array([design.draw(draw) for _ in range(draws)])
    held = (ends[:, 0] <= design.truth) & (design.truth <= ends[:, 1])
    return float(held.mean()), float((ends[:, 1] - ends[:, 0]).mean())


def main() -> int:
    """Print the table; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000, help="data sets a row (1000)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose interval has TEXT")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    options = parser.parse_args()
    rows = []
    print(f"{'interval':18} {'design':44} {'n':>4} {'nominal':>7} {'coverage':>8} {'width':>7}")
    for design in designs():
        if options.only not in design.interval:
            continue
        coverage, width = covered(design, options.draws)
        print(
            f"{design.interval:18} {design.design:44} {design.n:4d} {NOMINAL:7.2f} "
            f"{coverage:8.3f} {width:7.3f}",
            flush=True,
        )
        rows.append([design.interval, design.design, design.n, NOMINAL, coverage, width])
    if options.json:
        text = json.dumps({"draws": options.draws, "rows": rows}, indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
