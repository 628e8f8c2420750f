"""What every engine can do: take a recipe's weights, answer tokenised prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from safemerge.config.recipe import MergeRecipe
from safemerge.records import Response


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, where an answer is not greedy."""

    temperature: float
    """Above 0; logits are divided by it."""
    top_p: float = 1.0
    """Tokens are drawn among the fewest whose probabilities sum to this, in (0, 1]."""
    seed: int = 0
    """The same seed, prompt and weights give the same answer, whatever is in the batch."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A chat-formatted prompt as token ids, tokenised once per suite."""

    sample_id: str
    token_ids: tuple[int, ...]
    max_tokens: int
    """Most tokens generated for it."""
    allowed_ids: tuple[int, ...] | None = None
    """Tokens that the answer is restricted to; None for all."""
    sampling: Sampling | None = None
    """None for greedy decoding."""


@runtime_checkable
class Engine(Protocol):
    """Holds one candidate at a time; answers are a function of weights, prompts and seeds."""

    def load(self, recipe: MergeRecipe) -> None:
        """Make the recipe's merge the engine's weights.

        Raises:
            MergeError: If the recipe cannot be merged (non-finite result); the engine holds no
                candidate then, and can load another.
            EngineError: If the swap failed half-way; the engine must be rebuilt.
        """
        ...

    def generate(self, prompts: Sequence[TokenizedPrompt]) -> list[Response]:
        """Answer prompts with the loaded candidate, in the given order.

        Raises:
            EngineError: If no candidate is loaded, the engine died, or an answer carries
                another candidate's weight version.
        """
        ...

    def close(self) -> None:
        """Release the engine and end its processes; safe to call twice."""
        ...
