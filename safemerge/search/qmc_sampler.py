"""A Sobol sequence over all of a study's spaces."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import QMCSampler

from safemerge.search.encoding import Encoding

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class DeclaredQMCSampler(QMCSampler):
    """Optuna's scrambled Sobol sequence, with the declared spaces from the first recipe on.

    By itself it draws the first recipe at random and then varies that one's parameters alone, so
    that other spaces stay random. A trial takes the coordinates of the space that it is in. Its
    place in the sequence is its number, so that a resumed run continues the sequence.

    Args:
        encoding: The search spaces.
        seed: Of the scrambling; a run keeps it.
    """

    def __init__(self, encoding: Encoding, *, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._declared = encoding.parameters()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters of all spaces."""
        del study, trial
        return self._declared

    def _find_sample_id(
        self, study: optuna.Study, search_space: dict[str, BaseDistribution]
    ) -> int:
        del search_space
        return study._storage.get_n_trials(study._study_id) - 1
