"""Statistics of a model on data: Fisher diagonals, Gram matrices, importance scores.

Rows are computed one at a time, without padding: each row's gradient is needed by itself, and
nothing depends on which rows share a batch or a worker.

References:
    Matena and Raffel, arXiv:2111.09832 (diagonal Fisher).
    Jin et al., RegMean, arXiv:2212.09849 (Gram matrices of inputs).
    Ma et al., LED-Merging, arXiv:2502.16770 (SNIP scores, its location).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from safemerge.config.base import digest
from safemerge.config.checkpoint import Quantity
from safemerge.config.statistics import StatisticsSpec
from safemerge.data.rows import load_training_samples
from safemerge.engines.chat import ChatFormat
from safemerge.errors import DataError, TrainingError
from safemerge.training.batch import EncodedSample, encode
from safemerge.training.gradient import AllReduce
from safemerge.weights.agreement import is_finite

STATISTICS_VERSION = 1
"""Raised when a change of this module changes its results."""


def load_measured_rows(spec: StatisticsSpec, chat: ChatFormat) -> tuple[EncodedSample, ...]:
    """Read, template and tokenise the rows that a model is measured on.

    Raises:
        DataError: If a set is unreadable or has fewer rows than its share, or a prompt alone
            fills `max_tokens`.
    """
    rows: list[EncodedSample] = []
    counts = _shares([item.weight for item in spec.data], spec.num_samples)
    for (place, item), count in zip(spec.training_sets.items(), counts, strict=True):
        where = f"{spec.name}: {place}"
        samples = load_training_samples(item, where=where, seed=spec.seed)
        if len(samples) < count:
            raise DataError(
                f"{where}: must have its share of num_samples; got {len(samples)} rows, share "
                f"{count} of {spec.num_samples}. Lower num_samples or the set's weight."
            )
        rows += [encode(sample, chat, spec.max_tokens) for sample in samples[:count]]
    return tuple(rows)


def _shares(weights: Sequence[float], count: int) -> list[int]:
    """Split a count by weights: rounded down, what is left goes to the largest remainders."""
    exact = [count * weight / sum(weights) for weight in weights]
    shares = [math.floor(item) for item in exact]
    order = sorted(range(len(exact)), key=lambda at: shares[at] - exact[at])
    for at in order[: count - sum(shares)]:
        shares[at] += 1
    return shares


def statistics_digest(
    spec: StatisticsSpec, rows: Sequence[EncodedSample], *, model: str, base: str
) -> str:
    """Return the digest of everything that gathered statistics depend on.

    Args:
        spec: The declaration; name and workers do not count.
        rows: The tokenised data.
        model: Fingerprint of the model that is measured.
        base: Fingerprint of the recipe's base.
    """
    settings = spec.resolved()
    for key in ("name", "kind", "data", "chat", "num_samples", "max_tokens", "workers"):
        del settings[key]
    settings["quantities"] = sorted(spec.quantities)
    if "fisher" not in spec.quantities or spec.fisher == "empirical":
        del settings["num_draws"], settings["seed"]
    if "fisher" not in spec.quantities:
        del settings["fisher"]
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps([row.ids, row.num_prompt]).encode())
    return digest(
        {
            "version": STATISTICS_VERSION,
            "model": model,
            "base": base,
            "settings": settings,
            "data": content.hexdigest(),
        }
    )


class Gathering:
    """Sums over rows of what is measured of one model, then their means over all workers.

    Args:
        model: A causal LM of transformers; it is put into evaluation mode, and gradients are
            taken of all its parameters.
        spec: The declaration.
        quantities: What to measure, of the declared quantities or fewer.
    """

    def __init__(self, model: Any, spec: StatisticsSpec, quantities: Collection[Quantity]) -> None:
        self._model, self._spec, self._quantities = model.eval(), spec, quantities
        self._parameters: dict[str, Any] = dict(model.named_parameters())
        head = model.get_output_embeddings()
        self._layers = {
            f"{name}.weight": module
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
            and module is not head
            and f"{name}.weight" in self._parameters
        }
        self._sums: dict[str, dict[str, Tensor]] = {
            quantity: {
                name: torch.zeros_like(parameter, dtype=_wide(parameter.dtype))
                for name, parameter in self._parameters.items()
            }
            for quantity in ("fisher", "importance")
            if quantity in quantities
        }
        if "gram" in quantities:
            self._sums["gram"] = {
                name: layer.weight.new_zeros([layer.in_features] * 2, dtype=torch.float64)
                for name, layer in self._layers.items()
            }
        self._num_tokens = dict.fromkeys(self._layers, 0)
        self._num_rows = 0

    def add(self, row: EncodedSample, *, index: int) -> None:
        """Measure one row.

        Args:
            row: Prompt and answer.
            index: Its place in the data; seeds the tokens drawn for it.

        Raises:
            TrainingError: If the answer's log-probability is not finite.
        """
        device = next(iter(self._parameters.values())).device
        ids = torch.tensor([row.ids], device=device)
        if "gram" in self._quantities:
            with torch.no_grad(), self._watched_inputs():
                self._model(input_ids=ids, use_cache=False)
        drawn = self._spec.fisher == "sampled"
        of_data = [item for item in self._sums if item in ("fisher", "importance")]
        if drawn and "fisher" in of_data:
            of_data.remove("fisher")
            for draw in range(self._spec.num_draws):
                generator = torch.Generator().manual_seed(
                    (self._spec.seed * 1_000_003 + index) * 1009 + draw
                )
                self._add_gradient(ids, row.num_prompt, ["fisher"], generator)
        if of_data:
            self._add_gradient(ids, row.num_prompt, of_data, None)
        self._num_rows += 1

    @property
    def num_rows(self) -> int:
        """Rows measured so far."""
        return self._num_rows

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far, not copied, and what they are of."""
        return {
            "sums": self._sums,
            "num_tokens": self._num_tokens,
            "num_rows": self._num_rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state of the same model and quantities; rows measured before it are forgotten."""
        for quantity, sums in self._sums.items():
            for name, total in sums.items():
                total.copy_(state["sums"][quantity][name])
        self._num_tokens = dict(state["num_tokens"])
        self._num_rows = state["num_rows"]

    def finish(
        self, *, all_reduce: AllReduce | None = None
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return means by quantity and tensor name, and what is reported about them.

        Args:
            all_reduce: Sums a tensor over all workers; None for a single one.

        Returns:
            Tensors on the CPU, float32; a JSON-ready document.

        Raises:
            TrainingError: If a mean is not finite.
        """
        counts = torch.tensor([self._num_rows, *self._num_tokens.values()], dtype=torch.float64)
        if all_reduce is not None:
            device = next(iter(self._parameters.values())).device
            counts = counts.to(device)
            all_reduce(counts)
        num_rows, *num_tokens = (int(count) for count in counts.tolist())
        tokens = dict(zip(self._num_tokens, num_tokens, strict=True))
        draws = self._spec.num_draws if self._spec.fisher == "sampled" else 1
        means: dict[str, dict[str, Tensor]] = {}
        for quantity, sums in self._sums.items():
            means[quantity] = {}
            for name in list(sums):
                total = sums.pop(name)
                if all_reduce is not None:
                    all_reduce(total)
                count = tokens[name] if quantity == "gram" else num_rows
                count *= draws if quantity == "fisher" else 1
                means[quantity][name] = self._mean(total, count, quantity, name)
        return means, self._document(means, tokens, num_rows)

    def _mean(self, total: Tensor, count: int, quantity: str, name: str) -> Tensor:
        mean = (total / max(1, count)).to(device="cpu", dtype=torch.float32)
        if not is_finite(mean):
            raise TrainingError(
                f"{self._spec.name}, tensor '{name}': {quantity} must be finite; got NaN or "
                f"infinite entries. Measure in float32."
            )
        return mean

    def _document(
        self, means: dict[str, dict[str, Tensor]], tokens: dict[str, int], num_rows: int
    ) -> dict[str, Any]:
        document: dict[str, Any] = {"num_rows": num_rows}
        if "fisher" in means:
            fisher = means["fisher"].values()
            squares = sum(float(item.square().sum(dtype=torch.float64)) for item in fisher)
            total = sum(float(item.sum(dtype=torch.float64)) for item in fisher)
            entries = sum(item.numel() for item in fisher)
            document["fisher"] = {
                "labels": self._spec.fisher,
                "norm": math.sqrt(squares),
                "mean": total / entries,
            }
        if "gram" in means:
            document["gram"] = {"tokens": tokens}
        return document

    def _add_gradient(
        self,
        ids: Tensor,
        num_prompt: int,
        quantities: Sequence[str],
        generator: torch.Generator | None,
    ) -> None:
        """Add what the gradient of an answer's log-probability tells, to its quantities."""
        num_targets = ids.shape[1] - num_prompt
        handles = [
            parameter.requires_grad_(True).register_post_accumulate_grad_hook(
                partial(self._on_gradient, name, quantities, num_targets)
            )
            for name, parameter in self._parameters.items()
        ]
        try:
            logits = self._model(input_ids=ids, use_cache=False).logits[0, num_prompt - 1 : -1]
            logits = logits.to(_wide(logits.dtype))
            targets = ids[0, num_prompt:]
            if generator is not None:
                likely = logits.detach().to("cpu").softmax(dim=-1)
                targets = torch.multinomial(likely, 1, generator=generator)[:, 0].to(ids.device)
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            if not math.isfinite(float(loss.detach())):
                raise TrainingError(
                    f"{self._spec.name}: an answer's log-probability must be finite; got "
                    f"{-float(loss.detach())}. Check the checkpoint, or measure in float32."
                )
            torch.autograd.backward(loss)
        finally:
            for handle in handles:
                handle.remove()

    def _on_gradient(
        self, name: str, quantities: Sequence[str], num_targets: int, parameter: Tensor
    ) -> None:
        # NOTE: freed at once, so that one parameter's gradient is in memory at a time.
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        gradient = gradient.to(_wide(gradient.dtype))
        if "fisher" in quantities:
            self._sums["fisher"][name].addcmul_(gradient, gradient)
        if "importance" in quantities:
            score = (parameter.detach() * gradient).abs_().div_(num_targets)
            self._sums["importance"][name].add_(score)

    @contextmanager
    def _watched_inputs(self) -> Iterator[None]:
        handles = [
            layer.register_forward_pre_hook(partial(self._on_input, name))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_input(self, name: str, _layer: Any, arguments: tuple[Tensor, ...]) -> None:
        inputs = arguments[0].detach().flatten(end_dim=-2)
        inputs = inputs.to(_wide(inputs.dtype))
        self._sums["gram"][name].add_(inputs.T @ inputs)
        self._num_tokens[name] += len(inputs)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
