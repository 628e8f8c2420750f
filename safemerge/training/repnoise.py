"""RepNoise's loss: harmful representations are pushed towards noise, harmful answers away.

References:
    Rosati et al., "Representation Noising: A Defence Mechanism Against Harmful Finetuning",
    arXiv:2405.14577, section 3 and its appendix on the implementation:

        CE(harmless) + beta MMD - alpha log(1 + CE(harmful) + mean over layers of CE(layer))

    with MMD the mean over layers of the distance between the MLP outputs on harmful rows and
    Gaussian noise, and CE(layer) the cross-entropy of a layer's hidden state through the final
    norm and the output layer. Departures: a harmful row's mask is its target tokens that differ
    from the harmless row of the same index at the same position (the paper's pairs share their
    prompts; these sets share none), and noise is drawn from a generator of the step, so that a
    resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from safemerge.errors import ConfigError
from safemerge.training.batch import IGNORED, TokenBatch
from safemerge.training.gradient import Loss
from safemerge.training.text_decoder import text_decoder

NUM_KERNELS = 5
"""Gaussian kernels whose bandwidths double, around the mean squared distance."""


class RepnoiseTerms(NamedTuple):
    """The terms of the loss; scalars with a gradient."""

    total: Tensor
    harmless_loss: Tensor
    harmful_loss: Tensor
    """Cross-entropy on the harmful rows' masked targets, nats."""
    noise_distance: Tensor
    """MMD, mean over layers."""


def repnoise_terms(
    model: Any,
    harmless: TokenBatch,
    harmful: TokenBatch,
    *,
    ascent: float,
    noise: float,
    generator: torch.Generator,
    loss: Loss,
    where: str = "repnoise",
) -> RepnoiseTerms:
    """Compute RepNoise's loss of a step.

    Args:
        model: A causal LM of transformers, bare or with a peft adapter.
        harmless: Rows whose answers are learned.
        harmful: Rows whose answers are unlearned.
        ascent: Alpha.
        noise: Beta.
        generator: On the CPU; draws the noise.
        loss: Mean loss on the harmless rows.
        where: Place for messages.

    Raises:
        ConfigError: If the model has no modules named ``mlp`` or no final norm.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    core = text_decoder(causal)
    layers = [m for name, m in core.named_modules() if name.rsplit(".", 1)[-1] == "mlp"]
    if not layers or not hasattr(core, "norm"):
        raise ConfigError(
            f"{where}: repnoise needs modules named mlp and a final norm; got a "
            f"{type(causal).__name__}. Take another method."
        )
    harmless_loss = loss(model, harmless)
    chosen = differing_targets(harmless, harmful)
    activations: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _m, _i, output: activations.append(output))
        for layer in layers
    ]
    try:
        seen = core(
            input_ids=harmful.input_ids,
            attention_mask=harmful.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        )
    finally:
        for handle in handles:
            handle.remove()
    predicts = chosen[:, 1:]
    targets = harmful.labels[:, 1:][predicts]
    head = causal.get_output_embeddings()

    def lens(state: Tensor) -> Tensor:
        logits = head(state[:, :-1][predicts]).float()
        return cross_entropy(logits, targets) if len(targets) else state.sum() * 0.0

    harmful_loss = lens(seen.last_hidden_state)
    inner = [lens(core.norm(state)) for state in seen.hidden_states[1:-1]]
    layerwise = torch.stack([*inner, harmful_loss]).mean()
    distances = [
        noise_distance(activation, chosen, generator=generator) for activation in activations
    ]
    distance = torch.stack(distances).mean()
    total = harmless_loss + noise * distance - ascent * torch.log(1.0 + harmful_loss + layerwise)
    return RepnoiseTerms(total, harmless_loss, harmful_loss, distance)


def differing_targets(harmless: TokenBatch, harmful: TokenBatch) -> Tensor:
    """Return which target positions of harmful rows differ from the harmless row beside them.

    Rows are compared by index; with fewer harmless rows they are taken again from the first.

    Returns:
        bool, (harmful rows, harmful tokens).
    """
    rows, length = harmful.input_ids.shape
    order = torch.arange(rows, device=harmful.input_ids.device) % len(harmless.input_ids)
    beside = torch.full_like(harmful.input_ids, -1)
    shared = min(length, harmless.input_ids.shape[1])
    real = harmless.attention_mask[order, :shared].bool()
    beside[:, :shared] = torch.where(real, harmless.input_ids[order, :shared], -1)
    return (harmful.labels != IGNORED) & (harmful.input_ids != beside)


def noise_distance(activation: Tensor, chosen: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return the MMD between a layer's masked outputs and masked Gaussian noise.

    Args:
        activation: (rows, tokens, width).
        chosen: bool, (rows, tokens); other positions are zero on both sides.
        generator: On the CPU; draws the noise.
    """
    drawn = torch.randn(activation.shape, generator=generator, dtype=torch.float32)
    mask = chosen[..., None]
    outputs = (activation.float() * mask).flatten(1)
    return gaussian_mmd(outputs, (drawn.to(outputs) * mask).flatten(1))


def gaussian_mmd(first: Tensor, second: Tensor) -> Tensor:
    """Return the biased maximum mean discrepancy of two equally large sets of vectors.

    The kernel is the sum of `NUM_KERNELS` Gaussians; the middle bandwidth is the mean squared
    distance between different members of both sets together, and carries no gradient.

    Args:
        first: (members, width).
        second: (members, width).
    """
    members = torch.cat([first, second])
    # Not cdist: its gradient is undefined between equal members.
    products = members @ members.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0.0)
    count = len(members)
    bandwidth = distances.detach().sum() / (count * count - count)
    bandwidth = bandwidth.clamp_min(torch.finfo(bandwidth.dtype).tiny)
    middle = NUM_KERNELS // 2
    kernel = sum_kernels(distances, bandwidth, range(-middle, NUM_KERNELS - middle))
    half = len(first)
    within = kernel[:half, :half].mean() + kernel[half:, half:].mean()
    return within - kernel[:half, half:].mean() - kernel[half:, :half].mean()


def sum_kernels(distances: Tensor, bandwidth: Tensor, powers: Sequence[int]) -> Tensor:
    """Return the sum of exp(-distance / (bandwidth 2**power)) over the powers."""
    return torch.stack([torch.exp(-distances / (bandwidth * 2.0**p)) for p in powers]).sum(dim=0)
