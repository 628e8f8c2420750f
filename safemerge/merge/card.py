"""The model card of a merged checkpoint: where it comes from and how to make it again."""

import json
from collections.abc import Iterable, Sequence

from safemerge import __version__
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.method import method_row
from safemerge.config.recipe import MergeRecipe
from safemerge.lineage import front_matter, licence_lines, parent_cards

_TOWERS = (
    "Layers and kinds of modules in the recipe are those of the text decoder. The model's other "
    "towers ({}) are merged with the whole-model coefficient: the value of the group `default`, "
    "and the middle of coefficients that run over depth."
)


def model_card(
    recipe: MergeRecipe, *, adapter: str | None = None, towers: Iterable[str] = ()
) -> str:
    """Return a README.md with front matter, provenance, recipe and citation.

    Args:
        recipe: The recipe of the checkpoint, with digests where they are known.
        adapter: What is said of a merge written as a LoRA adapter; None for a whole model.
        towers: What the model has beside its text decoder, see `tower_of`.

    Returns:
        Markdown text. Folders are named by their last part only, so that a published card
        tells nothing of the machine it was made on. Licence, languages, data sets and
        repositories are those of the parents; see `safemerge.lineage`.
    """
    source = method_row(recipe.method.name).source
    rows = "\n".join(
        f"| {'base' if ref is recipe.base else 'expert'} | {ref.name} | "
        f"`{_source(ref)}` | "
        f"{f'`{ref.digest}`' if ref.digest else 'unknown'} |"
        for ref in recipe.checkpoints
    )
    resolved = recipe.resolved()
    keys = ("method", "steps", "layer_groups", "dtype", "seed", "vocabulary", "tokenizer")
    settings = json.dumps({key: resolved[key] for key in keys if key in resolved}, indent=2)
    operators = "".join(
        f"\nWith {step.source.title}, on {step.on}: {step.source.citation}, <{step.source.url}>.\n"
        for step in recipe.steps
    )
    link = f", <{source.url}>" if source.url else ""
    library = "transformers" if adapter is None else "peft"
    form = "" if adapter is None else f"\n## Form\n\n{adapter}\n"
    parents = parent_cards(recipe.checkpoints)
    tags = [recipe.method.name, *(["lora"] if adapter is not None else [])]
    front = front_matter(parents, library=library, tags=tags)
    licences = "\n".join(licence_lines(parents))
    beside = ", ".join(f"`{tower}`" for tower in towers)
    other = f"\n## Other towers\n\n{_TOWERS.format(beside)}\n" if beside else ""
    return f"""{front}

# {source.title} merge of {", ".join(ref.name for ref in recipe.experts)}

Candidate `{recipe.digest}`, merged by safemerge {__version__}; the whole recipe is in
`safemerge_recipe.json`.

| role | name | source | fingerprint |
|---|---|---|---|
{rows}

## Recipe

```json
{settings}
```

## Method

{source.title}: {source.citation}{link}. {source.variant}
{operators}{form}{other}
## Licences of the parents

{licences}

## Before use

A merge can lose safety training that its parts had. Measure this model before it meets users;
merging method and coefficients guarantee nothing.
"""


def with_notices(card: str, notices: Sequence[str]) -> str:
    """Return a card with a last section of what must be known of the models that were merged.

    Args:
        card: Markdown text.
        notices: Sentences; see `safemerge.merge.resident.ResidentCheckpoints`. Without any the
            card is unchanged.
    """
    if not notices:
        return card
    lines = "\n".join(f"- {_published(notice)}" for notice in notices)
    return f"{card.rstrip()}\n\n## Notes on the models\n\n{lines}\n"


def _published(notice: str) -> str:
    """A notice without the folders of the machine, and safe in Markdown."""
    words = (_short(word) if word.startswith("/") else word for word in notice.split(" "))
    return " ".join(words).replace("<", "&lt;").replace("|", "\\|").rstrip(".") + "."


def _source(ref: CheckpointRef) -> str:
    return ref.origin if ref.hub is not None else _short(ref.origin)


def _short(source: str) -> str:
    return source.rstrip("/").rsplit("/", 1)[-1]
