"""Weights and tokenizer of a judge that transformers runs in this process."""

from __future__ import annotations

from typing import Any, Literal

from safemerge.config.judge import ClassifierJudge, GuardJudge
from safemerge.errors import CheckpointError

_UNSET = 10**9
"""A tokenizer without a limit of its own says a number far above."""


def load_judge(
    spec: ClassifierJudge | GuardJudge, kind: Literal["sequence classifier", "language model"]
) -> tuple[Any, Any]:
    """Load a judge onto its device, ready to answer; onto CPUs where that is not decided.

    Returns:
        Tokenizer and model, as transformers' auto classes give them.

    Raises:
        CheckpointError: If the weights or the tokenizer cannot be loaded.
    """
    import transformers

    loader = (
        transformers.AutoModelForSequenceClassification
        if kind == "sequence classifier"
        else transformers.AutoModelForCausalLM
    )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(spec.source)
        model: Any = loader.from_pretrained(spec.source)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"judge '{spec.name}': {spec.source} must hold a {kind} and its "
            f"tokenizer; got: {str(error).splitlines()[0]}. Check judge.path."
        ) from None
    return tokenizer, model.to(spec.on_device(0).device).eval()


def position_limit(tokenizer: Any, model: Any) -> int | None:
    """Return how many tokens a model takes, by itself and by its tokenizer; None if neither says.

    Models of RoBERTa's kind count positions from behind the padding token's, which costs as
    many.

    Args:
        tokenizer: With ``model_max_length``, very large where nobody set it.
        model: A transformers model.
    """
    limits = [int(getattr(tokenizer, "model_max_length", 0) or 0)]
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(own, int):
        limits.append(own - _first_position(model))
    return min((limit for limit in limits if 0 < limit < _UNSET), default=None)


def _first_position(model: Any) -> int:
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(padding) + 1
    return 0
