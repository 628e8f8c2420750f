"""What is believed of every recipe: Gaussian processes over a search's parameters, by BoTorch.

One process a metric, with the known variance of each evaluation. BoTorch and torch are imported
when a model is first fitted, so that nothing that only reads a run waits for them.

References:
    Daulton, Balandat and Bakshy, Parallel Bayesian Optimization of Multiple Noisy Objectives with
    Expected Hypervolume Improvement, NeurIPS 2021 (NEHVI).
    Ament et al., Unexpected Improvements to Expected Improvement, NeurIPS 2023 (its logarithm).
    Hvarfner, Hellsten and Nardi, Vanilla Bayesian Optimization Performs Great in High Dimensions,
    ICML 2024 (the length scales' prior, BoTorch's default).
    Departure: the mean of a coefficient over its depths is an input of its own, so that a coarse
    change is learned before fine ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from safemerge.search.encoding import Encoding, Pattern

if TYPE_CHECKING:
    from botorch.models import SingleTaskGP

Array = npt.NDArray[np.float64]

_SAMPLES = 32
"""Joint draws that an acquisition value is the mean of."""
_RAW = 64
"""Starting points that are scored for each pattern, half over the cube, half near the front."""
_RESTARTS = 2
_STEPS = 40
_SPREAD = (0.03, 0.1, 0.25)
"""Standard deviations of the starting points near the front."""


class Belief(NamedTuple):
    """The posterior of some points."""

    mean: Array
    """Shape (points, metrics)."""
    deviation: Array
    """Standard deviation, shape (points, metrics)."""


class Proposed(NamedTuple):
    """Where to evaluate next, of one pattern."""

    pattern: Pattern
    point: Array
    """Shape (width,)."""
    gain: float
    """Expected growth of the hypervolume, in its unit."""


class Surrogate:
    """Gaussian processes fitted to evaluations.

    Args:
        points: Where was evaluated, shape (n, width), each coordinate in [0, 1].
        values: What was found, shape (n, metrics).
        variances: Variance of each value, same shape, above 0.
        groups: Columns that are one coefficient at several depths.
    """

    def __init__(
        self,
        points: Array,
        values: Array,
        variances: Array,
        *,
        groups: Sequence[Sequence[int]] = (),
    ) -> None:
        import torch
        from botorch.models import ModelListGP

        self._points = torch.tensor(points, dtype=torch.float64)
        self._model = ModelListGP(
            *(
                _fitted(self._points, values[:, column], variances[:, column], groups)
                for column in range(values.shape[1])
            )
        )

    def believe(self, points: Array) -> Belief:
        """Return the posterior of some points, shape (points, width)."""
        import torch

        with torch.no_grad(), _quiet():
            posterior = self._model.posterior(torch.tensor(points, dtype=torch.float64))
            return Belief(posterior.mean.numpy(), posterior.variance.sqrt().numpy())

    def draw(self, points: Array, *, count: int, seed: int) -> Array:
        """Draw from the joint posterior of some points.

        Args:
            points: Shape (points, width).
            count: Number of draws.
            seed: Of the draws.

        Returns:
            Values, shape (count, points, metrics).
        """
        import torch

        rng = np.random.default_rng(seed)
        draws = np.empty((count, len(points), len(self._model.models)))
        with torch.no_grad(), _quiet():
            for column, model in enumerate(self._model.models):
                joint = model.posterior(torch.tensor(points, dtype=torch.float64)).mvn
                # NOTE: by eigenvalues, for equal points make the covariance singular.
                scales, axes = np.linalg.eigh(joint.covariance_matrix.numpy())
                root = axes * np.sqrt(np.maximum(scales, 0.0))
                noise = rng.standard_normal((count, len(points)))
                draws[..., column] = joint.mean.numpy() + noise @ root.T
        return draws

    def propose(
        self,
        encoding: Encoding,
        *,
        reference: Sequence[float],
        near: Array,
        pending: Array,
        limits: int = 0,
        seed: int = 0,
    ) -> list[Proposed]:
        """Return where the hypervolume is expected to gain most, the best point of each pattern.

        Args:
            encoding: The search spaces.
            reference: Worst value that counts, by objective; higher is better.
            near: Points to look around, shape (points, width).
            pending: Points whose results are awaited, shape (points, width).
            limits: How many of the last metrics are constraints, 0 or less where they hold.
            seed: Of the draws and starting points.

        Returns:
            One proposal a pattern, the best first.
        """
        import torch
        from botorch.acquisition.multi_objective import logei
        from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
        from botorch.optim import optimize_acqf
        from botorch.sampling.normal import SobolQMCNormalSampler

        count = len(reference)
        constraints: list[Any] = [_Limit(count + index) for index in range(limits)]
        with _quiet(), torch.random.fork_rng():
            torch.manual_seed(seed)  # noqa: TID251 - BoTorch takes no generator; restored below
            # NOTE: else BoTorch compiles a kernel for this processor at its first use, where a
            # compiler is installed: a minute, and other last digits on other machines.
            logei._load_attempted = True
            acquisition = logei.qLogNoisyExpectedHypervolumeImprovement(
                self._model,
                ref_point=list(reference),
                X_baseline=self._points,
                sampler=SobolQMCNormalSampler(torch.Size([_SAMPLES]), seed=seed),
                objective=IdentityMCMultiOutputObjective(outcomes=list(range(count))),
                constraints=constraints or None,
                X_pending=torch.tensor(pending) if len(pending) else None,
                prune_baseline=True,
            )
            bounds = torch.stack(
                [torch.zeros(encoding.width), torch.ones(encoding.width)]
            ).double()
            rng = np.random.default_rng(seed)
            scored = []
            for pattern in encoding.patterns():
                starts = torch.tensor(_starts(encoding, pattern, near, rng))
                with torch.no_grad():
                    gains = acquisition(starts.unsqueeze(1))
                best = starts[gains.argsort(descending=True)[:_RESTARTS]]
                scored.append((float(gains.max()), pattern, best))
            scored.sort(key=lambda item: -item[0])
            found = []
            for rank, (gain, pattern, best) in enumerate(scored):
                point = best[0]
                if rank < 2 and pattern.free:
                    refined, _ = optimize_acqf(
                        acquisition,
                        bounds.double(),
                        q=1,
                        num_restarts=len(best),
                        batch_initial_conditions=best.unsqueeze(1),
                        fixed_features=pattern.fixed or None,
                        options={"maxiter": _STEPS, "batch_limit": _RESTARTS},
                    )
                    reached = float(acquisition(refined.unsqueeze(0)).detach())
                    if reached > gain:
                        gain, point = reached, refined[0]
                found.append(Proposed(pattern, point.clamp(0, 1).numpy(), math.exp(gain)))
        return sorted(found, key=lambda item: -item.gain)


class _Limit:
    """A constraint of the acquisition: the outcome of one column, met at 0 or less."""

    def __init__(self, column: int) -> None:
        self._column = column

    def __call__(self, outcomes: Any) -> Any:
        return outcomes[..., self._column]


def _starts(encoding: Encoding, pattern: Pattern, near: Array, rng: np.random.Generator) -> Array:
    width = len(pattern.free)
    free = rng.random((_RAW, width))
    if len(near) and width:
        half = _RAW // 2
        centres = near[rng.integers(len(near), size=half)][:, pattern.free]
        moved = rng.random((half, width)) < max(0.3, min(1.0, 3.0 / width))
        scale = rng.choice(_SPREAD, size=(half, 1))
        free[:half] = np.clip(centres + moved * scale * rng.standard_normal((half, width)), 0, 1)
    return encoding.spread(pattern, free)


def _fitted(points: Any, values: Array, variances: Array, groups: Sequence[Sequence[int]]) -> Any:
    import torch
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    model: SingleTaskGP = SingleTaskGP(
        points,
        torch.tensor(values, dtype=torch.float64).unsqueeze(-1),
        torch.tensor(variances, dtype=torch.float64).unsqueeze(-1),
        input_transform=_group_means()(groups) if groups else None,
    )
    with _quiet():
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


@cache
def _group_means() -> Any:
    """Return the input transform that appends the mean of each group's columns."""
    import torch
    from botorch.models.transforms.input import InputTransform

    class GroupMeans(InputTransform):  # type: ignore[misc]
        """Appends the mean of each group's columns."""

        def __init__(self, groups: Sequence[Sequence[int]]) -> None:
            super().__init__()
            self.groups = [list(group) for group in groups]
            self.transform_on_train = True
            self.transform_on_eval = True
            self.transform_on_fantasize = True
            self.is_one_to_many = False

        def transform(self, X: torch.Tensor) -> torch.Tensor:
            means = [X[..., group].mean(dim=-1, keepdim=True) for group in self.groups]
            return torch.cat([X, *means], dim=-1)

    return GroupMeans


class _quiet(warnings.catch_warnings):
    """Keeps numerical warnings of fits, which are tried again with more jitter, to itself."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
