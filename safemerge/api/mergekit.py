"""What a mergekit file presumes of its models, once they are found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.config.tokenizer import TokenizerChoice
from safemerge.errors import ConfigError

if TYPE_CHECKING:
    from safemerge.api.progress import Progress
    from safemerge.config.checkpoint import CheckpointRef
    from safemerge.config.mergekit import MergekitRecipe
    from safemerge.config.recipe import MergeRecipe


def check_presumed(
    recipe: MergeRecipe, mergekit: MergekitRecipe, progress: Progress, *, where: str
) -> MergeRecipe:
    """Check a mergekit file against its models, and finish the recipe that it became.

    Args:
        recipe: The recipe, every checkpoint given by path.
        mergekit: What the file was translated to.
        progress: Where filters that match nothing are reported.
        where: The file, for messages.

    Returns:
        The recipe, with the chat template that most models have if the file asks for that.

    Raises:
        ConfigError: If a ``layer_range`` does not cover the models, or filters overlap in a way
            that layer groups cannot say; names all of it.
    """
    from safemerge.merge.resident import ResidentCheckpoints

    base = ResidentCheckpoints.open(recipe, check=False).base
    problems = []
    if mergekit.num_layers is not None and base.num_layers != mergekit.num_layers:
        problems.append(
            f"{where}: mergekit's slices: layer_range must cover all {base.num_layers} layers of "
            f"the models; got {mergekit.num_layers}. Change layer_range, or write models instead "
            f"of slices."
        )
    for first, second in mergekit.apart:
        both = [name for name in base.distinct_names if first in name and second in name]
        if both:
            problems.append(
                f"{where}: mergekit's filters {first!r} and {second!r}: must not match one tensor "
                f"where settings list them differently; got {both[0]!r}. List the same filters in "
                f"one order everywhere."
            )
    if problems:
        raise ConfigError("\n".join(problems))
    for group in recipe.layer_groups:
        for pattern in group.tensors or ():
            text = pattern.strip("*")
            if group.optional and not any(text in name for name in base.distinct_names):
                progress.say(f"filter {text!r} matches no tensor of the base, and changes nothing")
    return _with_common_template(recipe) if mergekit.auto_template else recipe


def _with_common_template(recipe: MergeRecipe) -> MergeRecipe:
    """Return the recipe with the chat template that most of its models have, base first.

    As in mergekit, an adapter counts for the model that it is on.
    """
    from safemerge.weights.adapter import is_adapter
    from safemerge.weights.chat_template import DEFAULT, read_chat_templates

    def folder(ref: CheckpointRef) -> Path:
        on = recipe.base if ref.on is None else ref.on
        return Path(str(on.path if is_adapter(str(ref.path)) else ref.path))

    refs = [part for ref in recipe.checkpoints for part in ref.parts or (ref,)]
    found = {str(ref.path): read_chat_templates(folder(ref)).get(DEFAULT) for ref in refs}
    templates = [text.strip() for text in found.values() if text is not None]
    if not templates:
        return recipe
    common = Counter(templates).most_common(1)[0][0]
    chosen = {**recipe.tokenizer.resolved(), "chat_template": {"text": common}}
    return recipe.model_copy(update={"tokenizer": TokenizerChoice.model_validate(chosen)})
