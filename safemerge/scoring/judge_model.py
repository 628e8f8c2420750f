"""Weights and tokenizer of a judge that transformers runs in this process."""

from __future__ import annotations

from typing import Any, Literal

from safemerge.config.judge import ClassifierJudge, GuardJudge
from safemerge.errors import CheckpointError


def load_judge(
    spec: ClassifierJudge | GuardJudge, kind: Literal["sequence classifier", "language model"]
) -> tuple[Any, Any]:
    """Load a judge onto its device, ready to answer.

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
    return tokenizer, model.to(spec.device).eval()
