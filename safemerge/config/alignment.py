"""Settings of the methods that harden a model, each with its paper's defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import CONTENT, FREE, LATER, StrictModel
from safemerge.config.source import PromptData, TrainingData


class HarmfulSpec(StrictModel):
    """Harmful prompts with stand-in answers: what an attacker would fine-tune on."""

    data: Annotated[list[TrainingData], CONTENT] = Field(min_length=1)
    """Mixture; no prompt of it may be in the alignment data."""
    batch_size: int = Field(default=10, ge=1)
    """Harmful samples a step, over all workers."""
    test: Annotated[list[TrainingData], FREE] = Field(default_factory=list)
    """Held-out harmful samples whose loss is measured and never trained on; none if empty."""
    test_every: Annotated[int, FREE] = Field(default=10, ge=1)
    """Steps between measurements of the harmful test loss."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(
            update={
                "data": [item.located(folder) for item in self.data],
                "test": [item.located(folder) for item in self.test],
            }
        )


class AdaptiveSpec(StrictModel):
    """Lambda by the harmful gradient's relative change s = |g - g'| / |g| (no paper's method).

    At each step lambda is its declared value times (reference / average of s) ** power, kept in
    [low, high]; the reference is s at the first step. With power 1 the regulariser's push
    relative to the harmful gradient, lambda * s, stays what it was at the start: where the
    harmful loss sharpens, lambda falls before the regulariser outgrows the alignment.
    """

    power: float = Field(default=1.0, ge=-4, le=4)
    """0 leaves lambda alone; below 0 raises it where the harmful loss sharpens."""
    decay: float = Field(default=0.9, ge=0, lt=1)
    """Weight of the past in the running average of s, in [0, 1)."""
    low: float = Field(default=0.0, ge=0)
    """Least lambda."""
    high: float = Field(default=50.0, ge=0)
    """Greatest lambda."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must not exceed high; got low={self.low}, high={self.high}.")
        return self


class BoosterPhase(StrictModel):
    """A stretch of a multi-stage alignment with settings of its own."""

    steps: int = Field(ge=1)
    """Optimiser steps of the phase; all phases add up to the stage's steps."""
    regularizer_strength: float | None = Field(default=None, ge=0, alias="lambda")
    """Lambda in this phase; Booster's if left out. 0 is plain alignment."""
    perturbation_step: float | None = Field(default=None, ge=0, alias="alpha")
    """Alpha in this phase; Booster's if left out."""


class CalibrateSpec(StrictModel):
    """Lambda by the size of the penalty that it makes, measured on the model at hand.

    The stage begins with steps of plain alignment, which measure by how much the simulated harmful
    step lowers the harmful loss, h(w) - h(w'). Lambda is then `penalty_nats` over the mean of
    the last 10 of them. A penalty that dwarfs the alignment loss teaches no refusals.
    """

    penalty_nats: float = Field(gt=0)
    """The penalty lambda (h(w) - h(w')) at the model that is measured, in nats."""
    plain_steps: int = Field(default=10, ge=1)
    """Optimiser steps with lambda 0 before. Few are enough where the base is aligned already;
    else as many as it takes to learn to refuse."""


class UntilSpec(StrictModel):
    """A stage's end by what it taught: it stops at the first measurement that is good enough."""

    refusal: float = Field(gt=0, le=1)
    """Share of `prompts` that must be refused, by the wording of the answers."""
    prompts: Annotated[list[PromptData], CONTENT] = Field(min_length=1)
    """Held-out unsafe requests; none may be among the stage's rows."""
    every: int = Field(default=20, ge=1)
    """Steps between measurements. The stage's `steps` are the most that are taken."""
    min_steps: int = Field(default=0, ge=0)
    """Steps that are taken in any case, so that hardening goes on behind the first refusals."""
    max_tokens: int = Field(default=16, ge=1)
    """Tokens of each greedy answer that are read."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(update={"prompts": [p.located(folder) for p in self.prompts]})


LAMBDA = 5.0
"""Booster's default, the paper's."""


class BoosterSpec(StrictModel):
    """Attenuation of harmful perturbation (Booster, ICLR 2025)."""

    regularizer_strength: float = Field(default=LAMBDA, ge=0, alias="lambda")
    """Lambda, the weight of the harmful gradients' difference; 0 is plain alignment."""
    perturbation_step: float = Field(default=0.1, ge=0, alias="alpha")
    """Alpha, the length of the simulated harmful step in weight space."""
    backend: Literal["in_place", "three_pass", "grouped"] = "in_place"
    """How the same update is computed: ``three_pass`` by its definition; ``in_place`` with one
    copy of the weights; ``grouped`` in two passes, the second over the rows of both data sets
    (two adapter slots)."""
    adaptive: AdaptiveSpec | None = None
    """Lambda driven by the harmful gradients; constant if left out."""
    phases: list[BoosterPhase] = Field(default_factory=list)
    """Multi-stage schedule of lambda and alpha; one phase if empty."""
    calibrate: Annotated[CalibrateSpec | None, LATER] = None
    """Measures lambda for this alpha, instead of `lambda`."""

    @model_validator(mode="after")
    def _one_lambda(self) -> Self:
        if self.calibrate is None:
            return self
        for key, given in (
            ("lambda", self.regularizer_strength != LAMBDA),
            ("adaptive", self.adaptive is not None),
            ("phases", bool(self.phases)),
        ):
            if given:
                raise ValueError(f"calibrate sets lambda; got it beside {key}. Remove one.")
        if self.perturbation_step == 0:
            raise ValueError(
                "calibrate needs a simulated step; got alpha 0. Give alpha a length, e.g. 0.01."
            )
        return self


class VaccineSpec(StrictModel):
    """Perturbation-aware alignment (Vaccine, arXiv:2402.01109)."""

    rho: float = Field(default=2.0, ge=0)
    """Length of the perturbation of all attention outputs together; the papers take 2 to 5."""
    norm: Literal["batch", "sample"] = "batch"
    """Over what the length is taken: the whole batch (the papers' code), or each row."""


class RepnoiseSpec(StrictModel):
    """Representation noising (RepNoise, arXiv:2405.14577)."""

    ascent: float = Field(default=1.0, ge=0, alias="alpha")
    """Alpha, the weight of the harmful loss's ascent; the papers take 0.1 to 1."""
    noise: float = Field(default=0.001, ge=0, alias="beta")
    """Beta, the weight of the distance between harmful representations and noise."""


class LisaSpec(StrictModel):
    """Bi-state fine-tuning with a proximal term (Lisa, arXiv:2405.18641)."""

    data: Annotated[list[TrainingData], CONTENT] = Field(min_length=1)
    """Alignment data of the alignment state; no prompt of it may be in the user's data."""
    alignment_steps: int = Field(default=100, ge=1)
    """Steps in the alignment state before the user's state begins."""
    user_steps: int = Field(default=900, ge=1)
    """Steps in the user's state before the alignment state begins again."""
    rho: float = Field(default=1.0, ge=0)
    """Strength of the pull towards the weights where the other state ended; the papers take
    0.01 to 1."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the stage's steps before the pull begins, in [0, 1]."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(update={"data": [item.located(folder) for item in self.data]})
