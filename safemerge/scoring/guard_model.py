"""A guard model run by transformers in this process: slow, and needs no service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safemerge.config.judge import GuardJudge
from safemerge.errors import CheckpointError
from safemerge.scoring.guard import LEFT_OUT, GuardAsk, GuardReply, GuardTemplate
from safemerge.scoring.judge_model import load_judge

NUM_LIKELIEST = 20
"""Tokens whose log-probabilities are given at each step."""


def guard_template(spec: GuardJudge) -> GuardTemplate:
    """Load a guard's tokenizer alone, and see that its chat template can ask.

    Raises:
        CheckpointError: If it cannot be loaded, or cannot ask; see `GuardTemplate`.
    """
    return GuardTemplate(spec, guard_tokenizer(spec))


def guard_tokenizer(spec: GuardJudge) -> Any:
    """Load a guard's tokenizer alone.

    Raises:
        CheckpointError: If it cannot be loaded.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(spec.source)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"judge '{spec.name}': {spec.source} must hold a tokenizer; got: "
            f"{str(error).splitlines()[0]}. Check judge.path."
        ) from None


class TransformersGuardModel:
    """A causal language model that answers one question at a time; see `GuardModel`.

    Args:
        spec: The declared judge.

    Raises:
        CheckpointError: If the weights or the tokenizer cannot be loaded, or the chat template
            cannot ask; see `GuardTemplate`.
    """

    def __init__(self, spec: GuardJudge) -> None:
        import torch
        import transformers

        self._spec = spec
        self._torch = torch
        self._tokenizer, self._model = load_judge(spec, "language model")
        self._template = GuardTemplate(spec, self._tokenizer)
        named = self._model.generation_config.eos_token_id
        self._ends = self._template.ends(named if isinstance(named, list) else [named])
        # Of its own settings only its ends count: replies are greedy on every engine alike.
        self._model.generation_config = transformers.GenerationConfig()

    def reply(self, asks: Sequence[GuardAsk]) -> list[GuardReply]:
        """Answer greedily, one question after the other."""
        return [self._reply(ask) for ask in asks]

    def _reply(self, ask: GuardAsk) -> GuardReply:
        ids = self._template.token_ids(ask)
        if ids is None:
            return GuardReply("", failed=LEFT_OUT)
        if len(ids) > self._spec.max_tokens:
            return GuardReply(
                "",
                failed=f"too long for the judge: {len(ids)} tokens, limit {self._spec.max_tokens}",
            )
        with self._torch.inference_mode():
            given = self._torch.tensor([ids], device=self._model.device)
            made = self._model.generate(
                given,
                attention_mask=self._torch.ones_like(given),
                max_new_tokens=ask.max_reply_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                eos_token_id=list(self._ends) or None,
                pad_token_id=self._ends[0] if self._ends else 0,
            )
        new = made.sequences[0, len(ids) :].tolist()
        said = new[:-1] if new and new[-1] in self._ends else new
        return GuardReply(
            self._tokenizer.decode(said, skip_special_tokens=True),
            steps=tuple(self._likeliest(logits[0]) for logits in made.logits),
        )

    def _likeliest(self, logits: Any) -> Mapping[str, float]:
        logprobs = self._torch.log_softmax(logits.float(), dim=-1)
        values, tokens = logprobs.topk(min(NUM_LIKELIEST, len(logprobs)))
        found: dict[str, float] = {}
        for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
            # NOTE: two tokens may decode to one text; the likelier one comes first.
            found.setdefault(str(self._tokenizer.decode([token])), value)
        return found
