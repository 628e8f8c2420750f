"""A scripted engine: answers by rule instead of by weights, and fails on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safemerge.config.recipe import MergeRecipe
from safemerge.engines.engine import Continuation, Likelihood, TokenizedPrompt, until_stop
from safemerge.errors import EngineError, SafemergeError
from safemerge.records import Response

Script = Callable[[str, TokenizedPrompt], str]
"""Answer to a prompt by the candidate with this digest."""

LikelihoodScript = Callable[[str, Continuation], float]
"""Log-probability of a continuation by the candidate with this digest."""


def _one_a_token(candidate: str, asked: Continuation) -> float:
    return -float(len(asked.continuation_ids))


class ScriptedEngine:
    """An engine (see `safemerge.engines.engine.Engine`) without a model.

    Args:
        script: Answer by candidate digest and prompt; the same for the same pair.
        likelihood: Log-probability by candidate digest and continuation, 0 meaning that greedy
            decoding would give it; left out: -1 a token.
        load_error: Raised by `load`, which leaves no candidate loaded: a MergeError is a recipe
            that cannot be merged, an EngineError a swap that failed half-way.
        generate_error: Raised by `generate` and `loglikelihoods`: the engine died.
        stale: Weight version that answers carry in place of the loaded candidate's.
        drop: Sample ids that get no answer.
    """

    def __init__(
        self,
        script: Script,
        *,
        likelihood: LikelihoodScript = _one_a_token,
        load_error: SafemergeError | None = None,
        generate_error: EngineError | None = None,
        stale: str | None = None,
        drop: Sequence[str] = (),
    ) -> None:
        self.script = script
        self.likelihood = likelihood
        self.load_error = load_error
        self.generate_error = generate_error
        self.stale = stale
        self.drop = frozenset(drop)
        self.loaded: list[str] = []
        """Digests of every candidate loaded, in order."""
        self.asked: list[tuple[TokenizedPrompt, ...]] = []
        """Prompts of every `generate`, in order."""
        self.scored: list[tuple[Continuation, ...]] = []
        """Continuations of every `loglikelihoods`, in order."""
        self.closed = False
        self._candidate: str | None = None

    def load(self, recipe: MergeRecipe) -> None:
        """Take a recipe, or raise what was declared."""
        self._candidate = None
        if self.load_error is not None:
            raise self.load_error
        self._candidate = recipe.digest
        self.loaded.append(recipe.digest)

    def generate(self, prompts: Sequence[TokenizedPrompt]) -> list[Response]:
        """Answer by the script, one token a word, in the given order."""
        if self._candidate is None:
            raise EngineError("engine: a candidate must be loaded before prompts are answered.")
        self.asked.append(tuple(prompts))
        if self.generate_error is not None:
            raise self.generate_error
        return [
            self._response(self._candidate, prompt)
            for prompt in prompts
            if prompt.sample_id not in self.drop
        ]

    def loglikelihoods(self, continuations: Sequence[Continuation]) -> list[Likelihood]:
        """Score by the script, in the given order."""
        if self._candidate is None:
            raise EngineError("engine: a candidate must be loaded before texts are scored.")
        self.scored.append(tuple(continuations))
        if self.generate_error is not None:
            raise self.generate_error
        return [
            self._likelihood(self._candidate, asked)
            for asked in continuations
            if asked.sample_id not in self.drop
        ]

    def _likelihood(self, candidate: str, asked: Continuation) -> Likelihood:
        logprob = self.likelihood(candidate, asked)
        return Likelihood(
            sample_id=asked.sample_id,
            logprob=logprob,
            num_tokens=len(asked.continuation_ids),
            is_greedy=logprob == 0.0,
            candidate=self.stale or candidate,
        )

    def _response(self, candidate: str, prompt: TokenizedPrompt) -> Response:
        text = until_stop(self.script(candidate, prompt), prompt.stop)
        return Response(
            sample_id=prompt.sample_id,
            text=text,
            num_tokens=min(len(text.split()), prompt.max_tokens),
            finished=len(text.split()) <= prompt.max_tokens,
            candidate=self.stale or candidate,
        )

    def close(self) -> None:
        """Forget the candidate."""
        self.closed = True
        self._candidate = None
