"""How the next recipe is chosen: safemerge's own samplers, and any other of Optuna's form."""

from __future__ import annotations

import inspect
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from safemerge import plugins
from safemerge.config.base import StrictModel
from safemerge.errors import ConfigError

GIVEN = ("seed", "n_startup_trials", "constraints_func")
"""Arguments that a sampler is given where it takes them."""

_ELSEWHERE = {
    "gp": "Write 'use: optuna.samplers:GPSampler' in a study with one space, or take 'bayesian', "
    "which knows the noise and all spaces",
    "qlognehvi": "Write 'bayesian', which is qLogNEHVI",
    "map": "Take 'bayesian', whose Gaussian processes include MAP's quadratic surfaces",
    "cma_es": "Optuna's CMA-ES has one objective: with one, write 'use: "
    "optuna.samplers:CmaEsSampler'; else take 'bayesian'",
    "grid": "With choices or steps alone every sampler covers the grid and ends; take 'random'",
}
"""What to write for samplers that other tools have by name."""


class SamplerSpec(StrictModel):
    """How the next recipe is chosen (Optuna)."""

    name: Literal["auto", "tpe", "bayesian", "nsga2", "nsga3", "qmc", "random"] = "auto"
    """``bayesian``: the largest expected gain of hypervolume (qLogNEHVI, BoTorch) by Gaussian
    processes that know each evaluation's noise; about a CPU second a recipe. ``auto``: what the
    run began with; a new one takes ``bayesian``, or ``tpe`` without BoTorch or with more than
    a hundred combinations of choices. The run stores which. ``nsga2`` and ``nsga3``: genetic
    algorithms with populations of `startup`; ``nsga3`` keeps those near evenly spread directions,
    for three objectives and more. ``qmc``: a scrambled Sobol sequence, which covers the spaces
    more evenly than ``random`` and learns as little."""
    startup: int = Field(default=8, ge=1)
    """Recipes drawn over the whole space before the sampler learns."""
    synchronous: bool = Field(default=False, exclude_if=lambda given: not given)
    """Draw recipes in rounds of `startup`: each once all earlier rounds are finished, and knowing
    nothing of its own. The same study on the same machine then draws the same recipes, whatever
    the number of replicas and whichever answers first; they idle at the end of a round. A
    resumed run, a crashed trial or a budget in seconds may draw others."""
    use: str | None = Field(default=None, exclude_if=lambda given: given is None)
    """In place of `name`: a sampler that an installed package adds, by its name; or any class of
    Optuna's form by its import path, e.g. ``optuna.samplers:GPSampler``."""
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, exclude_if=lambda given: not given
    )
    """Keyword arguments of `use`. ``seed``, ``n_startup_trials`` (from `startup`) and
    ``constraints_func`` are given by safemerge where the class takes them."""
    plugin: str | None = Field(
        default=None, validate_default=True, exclude_if=lambda given: given is None
    )
    """Written by safemerge: the package and version that `use` comes from."""

    @field_validator("name", mode="before")
    @classmethod
    def _known_elsewhere(cls, name: object) -> object:
        if isinstance(name, str) and name in _ELSEWHERE:
            raise ValueError(f"is none of safemerge's own; got {name!r}. {_ELSEWHERE[name]}.")
        return name

    @field_validator("plugin")
    @classmethod
    def _same_version(cls, recorded: str | None, info: ValidationInfo) -> str | None:
        use = info.data.get("use")
        if use is None:
            return recorded
        try:
            current = (
                plugins.path_stamp(use)
                if ":" in use
                else plugins.find(plugins.SAMPLERS, use).stamp
            )
            return plugins.checked_stamp(current, recorded, where=f"use '{use}'")
        except ConfigError as error:
            raise ValueError(error.message) from error

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.use is None:
            if self.arguments or self.plugin is not None:
                raise ValueError(
                    f"arguments are of a sampler that is named with use; got {self.arguments} "
                    "without. Add use, or drop them."
                )
            return self
        if self.name not in ("auto", "tpe"):
            raise ValueError(f"name and use exclude each other; got {self.name!r}. Drop one.")
        ours = sorted(set(self.arguments) & set(GIVEN))
        if ours:
            raise ValueError(
                f"arguments.{ours[0]}: is given by safemerge; got {self.arguments[ours[0]]!r}. "
                "Use the study's seed, startup and constraints."
            )
        try:
            inspect.signature(self.loaded()).bind_partial(**self.arguments)
        except (ConfigError, TypeError) as error:
            raise ValueError(f"use '{self.use}': {error}.".replace("..", ".")) from error
        return self

    def loaded(self) -> Any:
        """Import the class, or function, that `use` names.

        Raises:
            ConfigError: If it cannot be imported, or cannot be called.
        """
        assert self.use is not None, "asked of samplers that are named with use"
        if ":" in self.use:
            found = plugins.load_path(self.use, where="sampler")
        else:
            found = plugins.load(plugins.SAMPLERS, self.use)
        if not callable(found):
            raise ConfigError(
                f"sampler: must be a class of Optuna's samplers, or a function that makes one; "
                f"got {type(found).__name__} for {self.use}."
            )
        return found
