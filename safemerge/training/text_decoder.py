"""The text decoder of a causal or vision-language model: what training on text passes through."""

from typing import Any


def text_decoder(model: Any) -> Any:
    """Return the decoder below the output head of a transformers model.

    Args:
        model: A causal LM, or a vision-language model; maybe with a peft adapter.

    Returns:
        The decoder alone, without image or sound encoders; text passes through it as through
        the whole model.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    core = causal.base_model
    return getattr(core, "language_model", core)
