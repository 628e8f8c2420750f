"""Which optional packages a command may lack, and how they are installed."""

from __future__ import annotations

RUNTIME = "Install safemerge[cpu], or safemerge[gpu] for NVIDIA GPUs."

VLLM = (
    "Install safemerge[gpu] on a machine with NVIDIA GPUs; on CPUs `make setup` in a checkout of "
    "safemerge does (vLLM's build for CPUs wants a build of torch that package indexes lack)"
)
"""How vLLM is installed; a sentence without its end."""

_LM_EVAL = "Install safemerge[lm-eval]."
_TRACKING = "Install safemerge[tracking]."
_COMPLETION = "Install safemerge[completion]."

EXTRAS: dict[str, tuple[str, ...]] = {
    "runtime": (
        "botorch", "datasets", "gguf", "huggingface_hub", "jaxtyping", "optuna", "peft", "psutil",
        "ray", "safetensors", "scipy", "tokenizers", "torch", "transformers",
    ),
    "gpu": ("vllm",),
    "lm-eval": ("lm_eval", "more_itertools"),
    "completion": ("shtab",),
    "tracking": ("mlflow", "tensorboardX", "wandb"),
}  # fmt: skip
"""Importable names by the extra that brings them."""


def advice(module: str | None) -> str | None:
    """Return how a missing package is installed; None if no extra brings it.

    Args:
        module: Dotted name of what could not be imported.
    """
    package = (module or "").partition(".")[0]
    found = next((extra for extra, names in EXTRAS.items() if package in names), None)
    advised = {
        "runtime": RUNTIME,
        "gpu": f"{VLLM}.",
        "lm-eval": _LM_EVAL,
        "completion": _COMPLETION,
        "tracking": _TRACKING,
    }
    return advised.get(found or "")
