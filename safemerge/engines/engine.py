"""What every engine can do: take a recipe's weights, answer tokenised prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import DataError
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
    stop: tuple[str, ...] = ()
    """Texts that end the answer; what comes from the first one on is cut off."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer and are no part of it: special ones, which no text shows."""
    sampling: Sampling | None = None
    """None for greedy decoding."""


@dataclass(frozen=True)
class Continuation:
    """A text whose probability is asked, given what stands before it, both as token ids.

    Continuations of one context are best asked in one call: its keys and values are shared.

    Raises:
        DataError: If the context or the continuation has no token.
    """

    sample_id: str
    context_ids: tuple[int, ...]
    """What is given."""
    continuation_ids: tuple[int, ...]
    """What is scored."""

    def __post_init__(self) -> None:
        if not self.context_ids or not self.continuation_ids:
            raise DataError(
                "continuation: context and continuation must have a token each; got "
                f"{len(self.context_ids)} and {len(self.continuation_ids)} for {self.sample_id}. "
                "Begin with the tokenizer's first token, and drop empty endings."
            )


@dataclass(frozen=True)
class Likelihood:
    """How probable a candidate finds a continuation; nothing was generated for it."""

    sample_id: str
    logprob: float
    """Natural logarithm, summed over the continuation's tokens, 0 or less; NaN where the
    candidate's activations overflow."""
    num_tokens: int
    """Tokens of the continuation."""
    is_greedy: bool
    """Whether each token is the most probable one: greedy decoding would give the text."""
    candidate: str
    """Weight version the engine stamped on it: the candidate's digest."""


def until_stop(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of the stop texts, all of it if there is none."""
    found = [text.index(end) for end in stop if end in text]
    return text[: min(found)] if found else text


@runtime_checkable
class Engine(Protocol):
    """Holds one candidate at a time; answers are a function of weights, prompts and seeds."""

    def load(self, recipe: MergeRecipe) -> None:
        """Make the recipe's merge the engine's weights.

        Raises:
            MergeError: If the recipe cannot be merged (non-finite result); the engine holds no
                candidate then, and can load another.
            CheckpointError: If a checkpoint's file is no longer what was opened; the engine holds
                no candidate then.
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

    def loglikelihoods(self, continuations: Sequence[Continuation]) -> list[Likelihood]:
        """Score continuations by the loaded candidate, in the given order.

        Context and continuation together must be shorter than the engine's context.

        Raises:
            EngineError: As `generate` does.
        """
        ...

    def close(self) -> None:
        """Release the engine and end its processes; safe to call twice."""
        ...
