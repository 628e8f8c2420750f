"""Drawing tokens with a seed a row, in an engine that decodes greedily.

The most probable token after Gumbel noise is added to the log-probabilities is a draw from them,
so that a greedy loop samples. Each row has a generator of its own: its draws depend on its seed
and not on what else is in the batch.

References:
    Gumbel, Statistical theory of extreme values, 1954 (the Gumbel-max trick). Holtzman et al.,
    The curious case of neural text degeneration, arXiv:1904.09751, section 3.1 (top-p).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safemerge.engines.engine import Sampling


class DrawnTokens:
    """Logits processor: rows that are sampled become noisy log-probabilities; others stay.

    Args:
        samplings: How each row is drawn; None for a greedy row.
    """

    def __init__(self, samplings: Sequence[Sampling | None]) -> None:
        self._samplings = samplings
        # NOTE: on the CPU, so that devices draw alike.
        self._generators = [
            None if item is None else torch.Generator().manual_seed(item.seed)
            for item in samplings
        ]

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the next tokens' scores, shape (rows, vocabulary); changed in place."""
        for row, (sampling, generator) in enumerate(
            zip(self._samplings, self._generators, strict=True)
        ):
            if sampling is not None and generator is not None:
                scores[row] = _noisy(scores[row], sampling, generator).to(scores.dtype)
        return scores


def _noisy(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    logprobs = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
    ordered, tokens = logprobs.sort(descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    # NOTE: the first token stays whatever its share: nothing lies before it.
    logprobs[tokens[before >= sampling.top_p]] = -torch.inf
    uniform = torch.rand(logits.shape[-1], generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    return logprobs + gumbel.to(logprobs)
