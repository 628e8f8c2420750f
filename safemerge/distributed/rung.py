"""The low rung on an evaluator's replica: a study's pairs, and a candidate's losses on them."""

from __future__ import annotations

import math
import time
from itertools import islice

from safemerge.config.base import digest
from safemerge.config.recipe import MergeRecipe
from safemerge.config.rung import RungSpec
from safemerge.data.rows import load_training_samples
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Continuation, Engine
from safemerge.errors import DataError, EngineError, MergeError
from safemerge.records import CandidateResult, RungResult, Timings
from safemerge.training.batch import encode


class RungPairs:
    """The rung's pairs, tokenised once.

    Args:
        spec: The rung, located.
        chat: The base's chat format.
        max_model_len: The engine's context, in tokens; longer pairs are cut at the end.
        seed: The study's seed: it draws one of several answers of a row.

    Raises:
        DataError: If a source is unreadable or empty, a template names a column that a row
            lacks, or a prompt alone fills the context.
    """

    def __init__(self, spec: RungSpec, chat: ChatFormat, *, max_model_len: int, seed: int) -> None:
        self._sizes: dict[str, list[int]] = {}
        self._asked: list[Continuation] = []
        self.num_cut = 0
        """Answers that are cut at the end."""
        texts: list[list[str]] = []
        for name, sources in spec.sets.items():
            self._sizes[name] = []
            for index, source in enumerate(sources):
                where = f"rung.{name}.{index}"
                samples = load_training_samples(source, where=where, seed=seed)
                self._sizes[name].append(len(samples))
                for row, sample in enumerate(samples):
                    texts.append([sample.prompt, sample.response])
                    pair = encode(sample, chat, None)
                    # One token less: an engine that only reads still wants room for one more.
                    if pair.num_prompt > max_model_len - 2:
                        raise DataError(
                            f"{where}: a prompt must leave room for its answer in the context; "
                            f"got {pair.num_prompt} of {max_model_len} tokens for "
                            f"{sample.sample_id}. Raise evaluator.max_model_len, or drop the row."
                        )
                    self.num_cut += len(pair.ids) > max_model_len - 1
                    self._asked.append(
                        Continuation(
                            sample_id=f"{where}/{row}",
                            context_ids=pair.ids[: pair.num_prompt],
                            continuation_ids=pair.ids[pair.num_prompt : max_model_len - 1],
                        )
                    )
        self._rows = digest(texts)

    @property
    def num_pairs(self) -> int:
        """Pairs over all sets."""
        return len(self._asked)

    def screen(
        self, engine: Engine, recipe: MergeRecipe, *, replica: str = ""
    ) -> RungResult | CandidateResult:
        """Merge a recipe and take its losses.

        Args:
            engine: Holds the checkpoints that the recipe names.
            recipe: Resolved recipe.
            replica: Name of the evaluator replica, for the record.

        Returns:
            The losses; or the result of a candidate that is `broken`: it cannot be merged, or
            its log-probabilities are not finite.

        Raises:
            EngineError: If the engine failed; nothing is known about the candidate.
        """
        started = time.perf_counter()
        try:
            engine.load(recipe)
        except MergeError as error:
            return _broken(recipe, str(error), replica)
        loaded = time.perf_counter()
        found = engine.loglikelihoods(self._asked)
        if len(found) != len(self._asked) or any(
            item.candidate != recipe.digest for item in found
        ):
            raise EngineError(
                f"rung: pairs must be scored by candidate {recipe.digest}; got {len(found)} of "
                f"{len(self._asked)} log-probabilities, or another's."
            )
        values = [-item.logprob / item.num_tokens for item in found]
        overflown = sum(not math.isfinite(value) for value in values)
        if overflown:
            text = f"non-finite log-probabilities: {overflown} of {len(values)}"
            return _broken(recipe, text, replica)
        rows = iter(values)
        losses = {
            name: [list(islice(rows, size)) for size in sizes]
            for name, sizes in self._sizes.items()
        }
        finished = time.perf_counter()
        timings = Timings(
            swap_s=loaded - started, score_s=finished - loaded, total_s=finished - started
        )
        return RungResult(
            candidate=recipe.digest,
            losses=losses,
            rows=self._rows,
            timings=timings,
            replica=replica,
        )


def _broken(recipe: MergeRecipe, reason: str, replica: str) -> CandidateResult:
    return CandidateResult(
        candidate=recipe.digest, split="search", metrics={}, broken=reason, replica=replica
    )
