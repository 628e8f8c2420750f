"""One attack: harmful fine-tuning of a hardened model in this process, by the stages' loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safemerge.config.source import TrainingData
from safemerge.config.training import FinetuneSpec
from safemerge.data.rows import load_training_samples
from safemerge.engines.chat import ChatFormat
from safemerge.engines.precision import compute_dtype
from safemerge.training.batch import CutRows, EncodedSample, Mixture, encode, load_mixture
from safemerge.training.full import products_in, save_full, whole_weights
from safemerge.training.lora import attach_lora, load_lora, save_trained
from safemerge.training.method import held_out_loss, make_method, method_batches
from safemerge.training.sft import StepMetrics, make_optimizer, stage_loss, train


@dataclass(frozen=True)
class AttackTrace:
    """What an attack saw."""

    losses: tuple[float, ...]
    """Training loss of each step, nats."""
    curve: tuple[tuple[int, float], ...]
    """(steps done, loss on held-out harmful rows in nats), the start and the end included."""
    cut: tuple[CutRows, ...] = ()
    """Sets of the attack with rows that were cut at `max_tokens`."""
    kept: tuple[tuple[int, Path], ...] = ()
    """(steps done, folder) of the weights that were kept along the way."""


def run_attack(
    spec: FinetuneSpec,
    out: Path,
    *,
    curve: TrainingData | None = None,
    curve_every: int = 10,
    keep_every: int | None = None,
    device: str = "cpu",
) -> AttackTrace:
    """Fine-tune a hardened model as an attacker would, and write the result.

    The same loop, batches and optimiser as a Ray Train stage of one worker; nothing is kept to
    resume from, since a cell is short and is run again.

    Args:
        spec: The attack; its base is a folder.
        out: Where the adapter (or the dense checkpoint) goes; must be new.
        curve: Held-out harmful rows whose loss is measured; none if left out.
        curve_every: Steps between measurements.
        keep_every: Steps between weights that are written beside `out`, as ``OUT-stepN``, before
            the last step; none if left out.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: If the data or the adapter do not fit.
        TrainingError: If a loss or the gradient is not finite.
    """
    from transformers import AutoModelForCausalLM

    base = Path(str(spec.base.path))
    chat = ChatFormat(base, spec.chat)
    mixture = load_mixture(spec, chat)
    held_out = _encoded(curve, spec, chat) if curve is not None else ()
    is_full = spec.parameters == "full"
    dtype = compute_dtype(spec.dtype, device=device)
    loss = stage_loss(spec)
    if is_full:
        loss = products_in(loss, device=device, dtype=dtype)
    # All weights are trained in float32: bfloat16 would swallow small steps.
    loaded = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32 if is_full else dtype
    ).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)  # noqa: TID251 - seeds the adapter's initial weights
        model = _trainable(loaded, spec, base)
    points: list[tuple[int, float]] = []
    losses: list[float] = []

    def measure(step: int) -> dict[str, float]:
        if not held_out or (step % curve_every and step != spec.steps):
            return {}
        rows = Mixture((), (), (), test=tuple(held_out))
        found = held_out_loss(model, rows, batch_size=spec.batch_size, device=device, loss=loss)
        points.append((step, found))
        return {"harmful_test_loss": found}

    kept: list[tuple[int, Path]] = []

    def on_step(metrics: StepMetrics) -> None:
        losses.append(metrics.loss)
        step = metrics.step
        if keep_every is not None and step % keep_every == 0 and step < spec.steps:
            kept.append((step, out.with_name(f"{out.name}-step{step}")))
            _save(model, spec, base, kept[-1][1])

    train(
        model,
        make_optimizer(model, spec),
        method_batches(mixture, spec),
        spec,
        method=make_method(model, spec, device=device, loss=loss),
        measure=measure,
        on_step=on_step,
    )
    measure(spec.steps)
    _save(model, spec, base, out)
    return AttackTrace(tuple(losses), tuple(points), mixture.cut, tuple(kept))


def _save(model: Any, spec: FinetuneSpec, base: Path, folder: Path) -> None:
    if spec.parameters == "full":
        save_full(whole_weights(model), base, folder, where=spec.name)
    else:
        save_trained(model, base, folder, output=spec.output)


def _trainable(model: Any, spec: FinetuneSpec, base: Path) -> Any:
    if spec.parameters == "full":
        return model  # as loaded, every weight asks for its gradient
    if spec.adapter is not None:
        return load_lora(model, Path(spec.adapter), base=base, where=spec.name)
    return attach_lora(model, spec.lora, where=spec.name)


def _encoded(curve: TrainingData, spec: FinetuneSpec, chat: ChatFormat) -> Sequence[EncodedSample]:
    samples = load_training_samples(curve, where="finetune.curve", seed=spec.seed)
    return [encode(sample, chat, spec.max_tokens) for sample in samples]
