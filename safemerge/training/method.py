"""From a declared stage to its step: which gradients are taken, on which batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from safemerge.config.alignment import (
    AlignSpec,
    BoosterAlign,
    BoosterVaccineAlign,
    HarmfulAlign,
    RepnoiseAlign,
    VaccineAlign,
)
from safemerge.config.alignment_method import AddedAlign
from safemerge.config.training import FinetuneSpec
from safemerge.errors import ConfigError
from safemerge.training.adaptive import StrengthSchedule
from safemerge.training.added import AlignmentStep, Gradient
from safemerge.training.batch import IGNORED, Mixture, TokenBatch, batches, collate
from safemerge.training.booster import BACKENDS, BoosterInputs
from safemerge.training.gradient import (
    AllReduce,
    Averaged,
    LogicalBatch,
    Loss,
    accumulate,
    average,
    logical_batch,
    zero_gradients,
)
from safemerge.training.lisa import Proximal, lisa_state
from safemerge.training.repnoise import repnoise_terms
from safemerge.training.sft import (
    StepLosses,
    StepMethod,
    stage_loss,
    supervised,
    target_loss,
    trainable_parameters,
)
from safemerge.training.vaccine import accumulate_vaccine

_SECOND_SEED = 2**32
"""Added to the stage's seed for the draws of the second mixture; no seed is as large."""


class PairedBatch(NamedTuple):
    """A step's alignment rows and harmful rows."""

    alignment: TokenBatch
    harmful: TokenBatch


@runtime_checkable
class Method(Protocol):
    """A step with a state that a checkpoint carries."""

    def __call__(self, step: int, batch: Any) -> StepLosses:
        """Fill the gradients of the trainable parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next steps depend on besides weights and optimiser."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state that `state_dict` returned."""


def make_method(
    model: Any,
    spec: FinetuneSpec | AlignSpec,
    *,
    device: str = "cpu",
    all_reduce: AllReduce | None = None,
    reduce_gradients: Callable[[list[Tensor], int], None] | None = None,
    loss: Loss | None = None,
    sharded: bool = False,
) -> Method:
    """Return the step of a stage's declared method.

    Args:
        model: Model with trainable parameters.
        spec: The stage.
        device: Where batches go.
        all_reduce: Sums a tensor over ranks; None for one rank.
        reduce_gradients: Of the plain method, see `supervised`.
        loss: The loss of one part; the declared one if left out.
        sharded: Whether the weights are sharded over the ranks, see `BoosterInputs`.

    Raises:
        ConfigError: If nothing of the model can be trained.
    """
    if not trainable_parameters(model):
        raise ConfigError(
            f"{spec.name}: some parameter must be trainable; got none. Check lora.targets."
        )
    loss = loss or stage_loss(spec)
    if isinstance(spec, AlignSpec):
        if isinstance(spec, BoosterAlign):
            return _Booster(model, spec, device, all_reduce, loss, sharded=sharded)
        if isinstance(spec, RepnoiseAlign):
            return _Repnoise(model, spec, device, loss)
        if isinstance(spec, VaccineAlign):
            return _Vaccine(model, spec, device, all_reduce, loss)
        if isinstance(spec, AddedAlign):
            return _Added(model, spec, device, all_reduce, loss)
    elif spec.lisa is not None:
        return _Lisa(model, spec, device, all_reduce, loss)
    return _Supervised(
        supervised(
            model,
            spec,
            device=device,
            reduce_gradients=None if sharded else reduce_gradients,
            loss=loss,
            sum_losses=all_reduce if sharded else None,
        )
    )


def method_batches(
    mixture: Mixture, spec: FinetuneSpec | AlignSpec, *, rank: int = 0, world_size: int = 1
) -> Iterator[TokenBatch | PairedBatch]:
    """Yield one batch per step, as the stage's method takes it.

    Args:
        mixture: What `load_mixture` returned.
        spec: The stage.
        rank: This worker.
        world_size: Workers; each takes its rows of the same joined batches.
    """
    draw = partial(batches, steps=spec.steps, rank=rank, world_size=world_size)
    first = draw(mixture, batch_size=spec.batch_size, seed=spec.seed)
    if mixture.second is None:
        return first
    seed = spec.seed + _SECOND_SEED
    if isinstance(spec, FinetuneSpec):
        return _alternating(
            spec, first, draw(mixture.second, batch_size=spec.batch_size, seed=seed)
        )
    assert isinstance(spec, HarmfulAlign), "a second mixture of an alignment is harmful"
    second = draw(mixture.second, batch_size=spec.harmful.batch_size, seed=seed)
    return map(PairedBatch, first, second)


def _alternating(
    spec: FinetuneSpec, user: Iterator[TokenBatch], alignment: Iterator[TokenBatch]
) -> Iterator[TokenBatch]:
    assert spec.lisa is not None, "only Lisa alternates"
    for step in range(spec.steps):
        yield next(alignment if lisa_state(spec.lisa, step) == "alignment" else user)


def held_out_loss(
    model: Any, mixture: Mixture, *, batch_size: int, device: str, loss: Loss = target_loss
) -> float:
    """Return the mean loss over the held-out harmful rows, per target token, in nats.

    Args:
        model: Any model; its training mode is kept.
        mixture: With at least one held-out row.
        batch_size: Rows computed at once.
        device: Where batches go.
        loss: The mean loss of a batch.
    """
    training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(mixture.test), batch_size):
            batch = collate(mixture.test[start : start + batch_size])
            num_targets = int((batch.labels[:, 1:] != IGNORED).sum())
            total += float(loss(model, batch.to(device))) * num_targets
            count += num_targets
    model.train(training)
    return total / max(1, count)


class _Stateless:
    """A method whose next step depends on weights and optimiser alone."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Supervised(_Stateless):
    def __init__(self, step: StepMethod) -> None:
        self._step = step

    def __call__(self, step: int, batch: TokenBatch) -> StepLosses:
        return self._step(step, batch)


class _Vaccine(_Stateless):
    def __init__(
        self,
        model: Any,
        spec: VaccineAlign | BoosterVaccineAlign,
        device: str,
        all_reduce: AllReduce | None,
        loss: Loss,
    ) -> None:
        self._model, self._spec, self._device = model, spec, device
        self._all_reduce, self._loss = all_reduce, loss
        self._parameters = trainable_parameters(model)

    def __call__(self, step: int, batch: TokenBatch) -> StepLosses:
        where = f"{self._spec.name}, step {step + 1}"
        whole = logical_batch(batch, num_parts=self._spec.micro_batches, device=self._device)
        gradients = zero_gradients(self._parameters)
        loss = self.add(whole, where=where)
        ((loss,),) = average(
            [Averaged(gradients, [loss], whole.num_targets)],
            all_reduce=self._all_reduce,
            where=where,
        )
        return StepLosses(float(loss), batch.num_tokens)

    def add(self, whole: LogicalBatch, *, where: str) -> Tensor:
        """Add the perturbed alignment loss's gradient; return the loss."""
        vaccine = self._spec.vaccine
        return accumulate_vaccine(
            self._model,
            whole,
            rho=vaccine.rho,
            per_row=vaccine.norm == "sample",
            loss=self._loss,
            all_reduce=self._all_reduce,
            where=where,
        )


class _Booster:
    def __init__(
        self,
        model: Any,
        spec: BoosterAlign,
        device: str,
        all_reduce: AllReduce | None,
        loss: Loss,
        *,
        sharded: bool,
    ) -> None:
        self._model, self._spec, self._device = model, spec, device
        self._all_reduce, self._loss, self._sharded = all_reduce, loss, sharded
        self._parameters = trainable_parameters(model)
        self._backend = BACKENDS[spec.booster.backend]
        self._strength = StrengthSchedule(spec.booster)
        self._alignment = None
        if isinstance(spec, BoosterVaccineAlign):
            self._alignment = _Vaccine(model, spec, device, all_reduce, loss).add

    def __call__(self, step: int, batch: PairedBatch) -> StepLosses:
        where = f"{self._spec.name}, step {step + 1}"
        split = partial(
            logical_batch,
            num_parts=self._spec.micro_batches,
            device=self._device,
            joined=self._sharded,
        )
        strength = self._strength.at(step)
        seen = self._backend(
            BoosterInputs(
                model=self._model,
                parameters=self._parameters,
                alignment=split(batch.alignment),
                harmful=split(batch.harmful),
                regularizer_strength=strength.regularizer_strength,
                perturbation_step=strength.perturbation_step,
                loss=self._loss,
                accumulate_alignment=(
                    None if self._alignment is None else partial(self._alignment, where=where)
                ),
                all_reduce=self._all_reduce,
                sharded=self._sharded,
                packing=self._spec.packing,
                chunk=self._spec.loss_chunk,
                where=where,
            )
        )
        ratio = torch.where(seen.harmful_norm > 0, seen.difference_norm / seen.harmful_norm, 0.0)
        # One transfer from the device for all that is measured.
        loss, harmful, perturbed, norm, ratio_value = torch.stack(
            [
                value.double()
                for value in (
                    seen.alignment_loss,
                    seen.harmful_loss,
                    seen.perturbed_loss,
                    seen.harmful_norm,
                    ratio,
                )
            ]
        ).tolist()
        self._strength.seen(step, ratio_value, fall=harmful - perturbed)
        return StepLosses(
            loss,
            batch.alignment.num_tokens + batch.harmful.num_tokens,
            {
                "harmful_loss": harmful,
                "perturbed_loss": perturbed,
                "harmful_grad_norm": norm,
                "difference_ratio": ratio_value,
                "regularizer_strength": strength.regularizer_strength,
                "penalty": strength.regularizer_strength * (harmful - perturbed),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        return self._strength.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._strength.load_state_dict(state)


class _Repnoise(_Stateless):
    def __init__(self, model: Any, spec: RepnoiseAlign, device: str, loss: Loss) -> None:
        self._model, self._spec, self._device = model, spec, device
        self._loss = loss

    def __call__(self, step: int, batch: PairedBatch) -> StepLosses:
        repnoise = self._spec.repnoise
        # A generator of the step: a resumed run draws the same noise.
        generator = torch.Generator().manual_seed(self._spec.seed * 1_000_003 + step)
        terms = repnoise_terms(
            self._model,
            batch.alignment.to(self._device),
            batch.harmful.to(self._device),
            ascent=repnoise.ascent,
            noise=repnoise.noise,
            generator=generator,
            loss=self._loss,
            where=self._spec.name,
        )
        torch.autograd.backward(terms.total)
        return StepLosses(
            float(terms.harmless_loss.detach()),
            batch.alignment.num_tokens + batch.harmful.num_tokens,
            {
                "harmful_loss": float(terms.harmful_loss.detach()),
                "noise_distance": float(terms.noise_distance.detach()),
            },
        )


class _Added(_Stateless):
    """A method of another package."""

    def __init__(
        self, model: Any, spec: AddedAlign, device: str, all_reduce: AllReduce | None, loss: Loss
    ) -> None:
        self._model, self._spec, self._device = model, spec, device
        self._all_reduce, self._loss = all_reduce, loss
        self._parameters = trainable_parameters(model)
        self._method = spec.loaded()

    def __call__(self, step: int, batch: TokenBatch | PairedBatch) -> StepLosses:
        alignment, harmful = batch if isinstance(batch, PairedBatch) else (batch, None)
        split = partial(logical_batch, num_parts=self._spec.micro_batches, device=self._device)
        given = AlignmentStep(
            step=step,
            num_steps=self._spec.steps,
            model=self._model,
            parameters=self._parameters,
            alignment=split(alignment),
            harmful=None if harmful is None else split(harmful),
            seed=self._spec.seed,
            where=f"{self._spec.name}, step {step + 1}",
            loss=self._loss,
            all_reduce=self._all_reduce,
        )
        found = self._method(given, **self._spec.arguments)
        shapes = [parameter.shape for parameter in self._parameters]
        if not isinstance(found, Gradient) or [value.shape for value in found.values] != shapes:
            got = type(found).__name__
            raise ConfigError(
                f"{given.where}: alignment method '{self._spec.method}' must return a Gradient "
                f"with a tensor of each parameter's shape; got {got}. See its package."
            )
        for parameter, value in zip(self._parameters, found.values, strict=True):
            parameter.grad = value
        num_tokens = alignment.num_tokens + (0 if harmful is None else harmful.num_tokens)
        measured = {} if given.harmful_loss is None else {"harmful_loss": given.harmful_loss}
        return StepLosses(float(found.loss), num_tokens, measured)


class _Lisa:
    def __init__(
        self, model: Any, spec: FinetuneSpec, device: str, all_reduce: AllReduce | None, loss: Loss
    ) -> None:
        assert spec.lisa is not None, "checked by the declaration"
        self._model, self._spec, self._device = model, spec, device
        self._all_reduce, self._loss = all_reduce, loss
        self._parameters = trainable_parameters(model)
        self._proximal = Proximal(self._parameters, spec.lisa, steps=spec.steps)

    def __call__(self, step: int, batch: TokenBatch) -> StepLosses:
        whole = logical_batch(batch, num_parts=self._spec.micro_batches, device=self._device)
        self._proximal.enter(step)
        gradients = zero_gradients(self._parameters)
        loss = accumulate(self._model, whole, loss=self._loss)
        ((loss,),) = average(
            [Averaged(gradients, [loss], whole.num_targets)],
            all_reduce=self._all_reduce,
            where=f"{self._spec.name}, step {step + 1}",
        )
        term = self._proximal.pull(step)
        measured = {} if term is None else {"proximal": float(term)}
        return StepLosses(float(loss), batch.num_tokens, measured)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._proximal.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._proximal.load_state_dict(state)
