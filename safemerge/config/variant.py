"""Experts as a study's spaces train them: one variant for each combination of varied settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple, Protocol

from safemerge.config.checkpoint import CheckpointRef, Setting
from safemerge.config.problems import did_you_mean

EXPERTS = "experts"
"""First part of a path into an expert: ``experts.<name>.<path in its training file>``."""

MAX_VARIANTS = 64
"""Most variants of one expert: each is a model to train, to store and to keep open."""

Settings = Mapping[str, Setting]
"""Value by dotted path in a training file."""


class Varied(Protocol):
    """What a space says of a path: a range, or choices."""

    def grid(self) -> Sequence[Setting] | None:
        """Every value; None for a continuum."""

    def ends(self) -> Sequence[Setting]:
        """The extreme values."""

    @property
    def interpolates(self) -> bool:
        """Whether values between those of `grid` stand for weights between theirs."""


class TrainingPath(NamedTuple):
    """A varied path that leads into the training file of an expert."""

    expert: str
    setting: str
    """Dotted path in the file, e.g. ``booster.lambda``."""


class ExpertVariant(NamedTuple):
    """An expert trained with some settings of its file replaced."""

    expert: str
    settings: Settings
    checkpoint: CheckpointRef
    """Its own name is unique; in a recipe it stands under the expert's."""

    @property
    def label(self) -> str:
        """Name for people, e.g. ``aligned[booster.lambda=20]``."""
        return f"{self.expert}[{settings_text(self.settings)}]"


def training_path(path: str) -> TrainingPath | None:
    """Return what a varied path means in a training file; None if it leads into the recipe."""
    first, _, rest = path.partition(".")
    expert, _, setting = rest.partition(".")
    if first != EXPERTS or not setting:
        return None
    if setting.partition(".")[0] in CheckpointRef.model_fields:
        return None
    return TrainingPath(expert, setting)


def expert_settings(params: Mapping[str, Setting]) -> dict[str, dict[str, Setting]]:
    """Return the settings of each expert among values by varied path, others left out."""
    found: dict[str, dict[str, Setting]] = {}
    for path, value in params.items():
        place = training_path(path)
        if place is not None:
            found.setdefault(place.expert, {})[place.setting] = value
    return found


def declared_variants(
    experts: Sequence[CheckpointRef], grids: Sequence[Mapping[str, Sequence[Setting]]]
) -> Iterator[ExpertVariant]:
    """Yield every variant that some spaces need, each once.

    Args:
        experts: The study's experts.
        grids: For each space, every value of its training paths.
    """
    for expert in experts:
        seen: list[Settings] = []
        for grid in grids:
            own = {
                place.setting: values
                for path, values in grid.items()
                if (place := training_path(path)) is not None and place.expert == expert.name
            }
            if not own:
                continue
            for values in product(*own.values()):
                settings = dict(zip(own, values, strict=True))
                if any(same_settings(settings, known) for known in seen):
                    continue
                seen.append(settings)
                name = f"{expert.name[:56]}--{len(seen)}"
                merged = {**expert.settings, **settings}
                changed = {"name": name, "settings": merged}
                yield ExpertVariant(expert.name, settings, expert.model_copy(update=changed))


def training_problems(
    where: str,
    experts: Sequence[CheckpointRef],
    vary: Mapping[str, Varied],
    *,
    resolved: bool,
) -> Iterator[str]:
    """Yield what is wrong with a space's paths into training files, without reading those.

    Args:
        where: Place of the space, for messages.
        experts: The study's experts.
        vary: The space's values by path.
        resolved: Whether the variants were trained, and the experts are folders by now.
    """
    counts = dict.fromkeys((item.name for item in experts), 1)
    lines: dict[str, list[str]] = {}
    measured = {item.name for item in experts if item.statistics is not None}
    trained = {item.name for item in experts if item.align or item.finetune}
    for path, values in vary.items():
        place = training_path(path)
        if place is None:
            continue
        here, grid = f"{where}.vary.{path}", values.grid()
        if place.expert not in counts:
            yield f"{here}: no such expert. {did_you_mean(place.expert, list(counts))}"
            continue
        if place.expert not in trained and not resolved:
            yield (
                f"{here}: only a trained expert (align, finetune) has settings to vary; got "
                f"'{place.expert}', which exists. Vary its weight, or give its training file."
            )
        if values.interpolates:
            lines.setdefault(place.expert, []).append(path)
            if place.expert in measured:
                yield (
                    f"{here}.between: must be snap for a model with statistics, which are of "
                    f"trained weights; got interpolate for '{place.expert}'. Take snap."
                )
        if grid is None:
            low, high = values.ends()
            yield (
                f"{here}: each value is a model to train, so there must be choices, a step or "
                f"knots; "
                f"got every number from {low} to {high}."
            )
        counts[place.expert] *= len(grid or ())
    for expert, paths in lines.items():
        if len(paths) > 1:
            yield (
                f"{where}.vary: weights are interpolated along one setting of an expert; got "
                f"{', '.join(paths)} for '{expert}'. Let the others snap."
            )
    for expert, count in counts.items():
        if count > MAX_VARIANTS:
            yield (
                f"{where}.vary: at most {MAX_VARIANTS} variants of an expert are trained; got "
                f"{count} of '{expert}'. Take fewer values."
            )


def settings_text(settings: Settings) -> str:
    """Return settings for people, e.g. ``booster.lambda=20, seed=1``."""
    return ", ".join(
        f"{path}={int(value) if isinstance(value, float) and value.is_integer() else value}"
        for path, value in settings.items()
    )


def same_settings(first: Settings, second: Settings) -> bool:
    """Tell whether two choices of settings are the same, numbers up to rounding."""
    return set(first) == set(second) and all(
        _same(value, second[path]) for path, value in first.items()
    )


def _same(first: Setting, second: Setting) -> bool:
    if isinstance(first, bool | str) or isinstance(second, bool | str):
        return type(first) is type(second) and first == second
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)
