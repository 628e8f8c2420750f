"""What a tensor does in a decoder, read from its name."""

import re

from safemerge.config.coefficient import ModuleKind

# Norms come first: a block's norms carry the block's name.
_PATTERNS: tuple[tuple[ModuleKind, re.Pattern[str]], ...] = (
    ("norms", re.compile(r"norm|(?:^|[._])ln(?:[._]|\d|$)")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|experts|moe")),
    ("embeddings", re.compile(r"embed|(?:^|\.)w[tp]e\.|lm_head|output_projection")),
)

_TOWER = re.compile(
    r"(?:^|[._])(?:vision|visual|vit|image|img|clip|siglip|audio|speech|sound|acoustic|video"
    r"|talker|code2wav|token2wav|projector|connector|resampler|perceiver|abstractor|q_?former"
    r"|mtp)(?:$|[._\d])|(?:^|\.)mm_|(?<!transformer)(?:^|\.)encoder\."
)
"""Parts of models that are not the text decoder; ChatGLM calls its decoder's layers
``transformer.encoder``."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.\d+\.")


def tower_of(name: str) -> str | None:
    """Return the tower that a tensor belongs to, None for the text decoder's tensors.

    Towers are what a model has beside its text decoder: encoders of images and sound, their
    projectors, speech decoders, layers for several tokens at once.

    Args:
        name: Tensor name, e.g. ``vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight``.

    Returns:
        The name's beginning, up to the part that tells, e.g. ``vision_tower``.
    """
    match, layer = _TOWER.search(name), _LAYER.search(name)
    if match is None or (layer is not None and layer.start() < match.start()):
        return None
    end = name.find(".", match.start() + 1)
    return name if end < 0 else name[:end]


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
