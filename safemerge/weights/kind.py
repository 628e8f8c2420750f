"""What a tensor does in a decoder, told from its name."""

import re

from safemerge.config.coefficient import ModuleKind

# Norms come first: a block's norms carry the block's name.
_PATTERNS: tuple[tuple[ModuleKind, re.Pattern[str]], ...] = (
    ("norms", re.compile(r"norm|(?:^|[._])ln(?:[._]|\d|$)")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|experts|moe")),
    ("embeddings", re.compile(r"embed|(?:^|\.)w[tp]e\.|lm_head|output_projection")),
)


def module_kind(name: str) -> ModuleKind | None:
    """Return the kind of module a tensor belongs to.

    Args:
        name: Tensor name, e.g. ``model.layers.4.mlp.up_proj.weight``.

    Returns:
        ``norms``, ``attention``, ``mlp`` or ``embeddings`` (the output head among them); None
        for a name that tells none of these.
    """
    for kind, pattern in _PATTERNS:
        if pattern.search(name):
            return kind
    return None
