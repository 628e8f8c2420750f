"""Models with different vocabularies seen in one: embedding rows go by token, not by id."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from safemerge.config.tokenizer import TokenizerChoice, TokenRow
from safemerge.errors import CheckpointError, CheckpointMismatchError
from safemerge.weights.adapter import AdapterCheckpoint
from safemerge.weights.checkpoint import OUTPUT_HEAD, Checkpoint
from safemerge.weights.kind import module_kind
from safemerge.weights.untied import UntiedView
from safemerge.weights.vocabulary import Tokens, read_tokens, vocabulary_difference

Sharing = Literal["base", "union", "tokenizer"]

_HEAD_BIAS = "lm_head.bias"
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class _Model:
    """A checkpoint and what its tokenizer says."""

    checkpoint: Checkpoint
    tokens: Tokens
    embedding: str
    num_rows: int

    def row(self, token: str) -> int | None:
        """Row of a token; None if the model lacks it, or its id is beyond the rows."""
        index = self.tokens.ids.get(token)
        return index if index is not None and index < self.num_rows else None


Donors = Mapping[int, list[tuple[str, int]]]
"""Models and their rows by shared id: the mean of them is taken, zeros if there are none."""


@dataclass(frozen=True)
class _Chosen:
    """Rows that a recipe chooses."""

    donors: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    forced: frozenset[int] = frozenset()
    """Ids whose row is taken from the donors in every model."""
    padding: int = 0
    """Rows after those of tokens."""


class VocabularyView(Checkpoint):
    """A checkpoint with the embedding rows of another vocabulary; see `share_vocabulary`.

    Input embedding and output head have one row for each id of the shared vocabulary; all other
    tensors are the source's. A model whose rows are in place already gives its own tensors.

    Args:
        source: The checkpoint as stored.
        rows: Row of the source for each shared id, -1 where the source has none.
        missing: Gives the rows of a tensor where the source has none.
        fallback: Checkpoint whose dtype those rows have.
        added: Entries of tokenizer.json for tokens that the tokenizer lacks, by id.
        padding: Number of rows after those, each the mean of them.
    """

    def __init__(
        self,
        source: Checkpoint,
        rows: Int64[Tensor, "rows"],
        missing: Callable[[str, Int64[Tensor, "missing"]], Tensor],
        *,
        fallback: Checkpoint,
        added: tuple[dict[str, Any], ...] = (),
        padding: int = 0,
    ) -> None:
        self.source = source
        self.folder = source.folder
        self.added = added
        self._num_rows = rows.numel() + padding
        self.config = _with_vocab_size(source.config, self._num_rows)
        self._rows = rows
        self._missing = missing
        self._fallback = fallback
        self._absent = torch.nonzero(rows < 0).flatten()
        self.by_token = frozenset(_names_by_token(source))
        """Names of the tensors that have a row for each token."""
        stored = source.shape(source.input_embedding or "")[0]
        same_number = stored == self._num_rows and not padding
        moved = (rows >= 0) & (rows != torch.arange(rows.numel()))
        self.in_order = same_number and not bool(moved.any())
        """Whether no row is elsewhere than in the source; some may be another model's."""
        self.in_place = self.in_order and not self._absent.numel()
        """Whether every row is the source's own, where it was."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every stored tensor name, sorted."""
        return self.source.names

    def __contains__(self, name: object) -> bool:
        return name in self.source

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape in the shared vocabulary."""
        stored = self.source.shape(name)
        return (self._num_rows, *stored[1:]) if name in self.by_token else stored

    def dtype(self, name: str) -> torch.dtype:
        """Return the source's dtype; where rows of another model enter, one that holds both."""
        stored = self.source.dtype(name)
        if name not in self.by_token or not self._absent.numel():
            return stored
        return torch.promote_types(stored, self._fallback.dtype(_held(self._fallback, name)))

    def fetch(self, name: str) -> None:
        """Bring the source's tensor into memory."""
        self.source.fetch(name)

    def release(self, name: str) -> None:
        """Let the source's tensor go."""
        self.source.release(name)

    def check_unchanged(self) -> None:
        """Refuse a source whose files are no longer those that were opened."""
        self.source.check_unchanged()

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a tensor, its rows by shared id."""
        stored = self.source.tensor(name)
        if name not in self.by_token or self.in_place:
            return stored
        gathered = stored.index_select(0, self._rows.clamp(min=0)).to(self.dtype(name))
        if self._absent.numel():
            gathered[self._absent] = self._missing(name, self._absent).to(gathered.dtype)
        num_padding = self._num_rows - self._rows.numel()
        if num_padding:
            mean = gathered.float().mean(dim=0, keepdim=True).to(gathered.dtype)
            gathered = torch.cat([gathered, mean.expand(num_padding, *mean.shape[1:])])
        return gathered


def whole_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """Return the whole model that a checkpoint is made of: under views, and under adapters."""
    stored = stored_checkpoint(checkpoint)
    while isinstance(stored, AdapterCheckpoint):
        stored = stored_checkpoint(stored.base)
    return stored


def stored_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint as it is on disk: a view's source, or the checkpoint itself."""
    while isinstance(checkpoint, VocabularyView | UntiedView):
        checkpoint = checkpoint.source
    return checkpoint


def share_vocabulary(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    *,
    how: Sharing,
    owner: str | None = None,
    choice: TokenizerChoice | None = None,
    base_name: str = "base",
    where: str = "merge",
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Show base and experts in one vocabulary, so that they merge row by row.

    The shared vocabulary has the base's tokens at the base's ids. ``union`` adds after them the
    experts' added tokens that the base lacks, expert by expert as given, each in the order of
    its ids. ``tokenizer`` has the tokens and ids of the model `owner` instead, and as many rows.
    Tokens and ids are those of tokenizers as transformers loads them. A token is had by a model
    whose tokenizer names it and whose embedding has a row at that id. In input embedding and
    output head (weight and bias), the row of a token in a model is

    - the model's own row, where the model has the token;
    - else the base's row, where the base has it: the expert's task vector is zero there;
    - else the mean, in float32, rounded to the base's dtype, of the rows of the experts that
      have it, whatever their weights. Base and experts that lack the token are all taken to
      have that mean, so that their task vectors are zero there; a token of one expert thus has
      that expert's row in every model.

    Rows that no token of the shared vocabulary names (padding) are in every model those of the
    base, or of `owner`. Tokens outside the shared vocabulary are left out with their rows. An
    expert without a tokenizer has the base's ids. Order of ids in an expert's own tokenizer
    changes nothing.

    `choice` may name the model, and the token there, whose row a token has in models that lack it
    (or in all); tokens that the vocabulary lacks are added after it. With
    ``pad_to_multiple_of`` there is one row for each token, and what the next multiple needs is
    filled, model by model, with the mean of those (as mergekit 0.1.5).

    Args:
        base: Checkpoint that task vectors are measured from, as stored.
        experts: Experts by name, as stored; the order counts for ``union``.
        how: ``base``: the base's vocabulary alone; ``union``: with the experts' added tokens;
            ``tokenizer``: that of `owner`.
        owner: An expert's name, for ``tokenizer``; None for the base.
        choice: Rows that are chosen, and how many there are; None for neither.
        base_name: What `choice` calls the base.
        where: Place named first in messages.

    Returns:
        The base and the experts by name; each a `VocabularyView`, save the base where nothing
        is added.

    Raises:
        CheckpointMismatchError: If the base has no tokenizer, an expert shares no token with the
            base, a union would take in tokens of an expert's own segmentation, or no model has a
            row for a token.
        CheckpointError: If embeddings of an unknown kind depend on the vocabulary, or
            transformers cannot load a tokenizer.
    """
    own = _model(f"{where}, base", base, None)
    models = {
        name: _model(f"{where}, expert '{name}'", checkpoint, own)
        for name, checkpoint in experts.items()
    }
    for name, model in models.items():
        if not any(model.row(token) is not None for token in own.tokens.ids):
            raise CheckpointMismatchError(
                f"{where}, expert '{name}': must share tokens with the base; got none of "
                f"{len(own.tokens.ids)}. Use an expert of the base's tokenizer."
            )
    lead = own if owner is None else models[owner]
    ids, added = dict(lead.tokens.ids), []
    if how == "union":
        for name, model in models.items():
            entries = _new_tokens(f"{where}, expert '{name}'", model, ids)
            ids.update({entry["content"]: entry["id"] for entry in entries})
            added += entries
    num_rows = _num_rows(own, models, ids) if how == "union" else lead.num_rows
    chosen = _Chosen()
    if choice is not None and choice.rows:
        entries = _plain_tokens(choice.tokens, ids)
        ids.update({entry["content"]: entry["id"] for entry in entries})
        num_rows = max([num_rows, *(entry["id"] + 1 for entry in entries)])
        added += entries
        padding = 0
        if choice.pad_to_multiple_of is not None:
            num_rows = _without_gaps(where, ids)
            padding = -num_rows % choice.pad_to_multiple_of
        chosen = _chosen(where, choice.tokens, {base_name: own, **models}, ids, padding)
    ids = {token: index for token, index in ids.items() if index < num_rows}
    if lead is own:
        donors = _donors(where, own, models, ids, num_rows, chosen)
        rows = torch.arange(num_rows)
        rows[own.num_rows :] = -1
    else:
        donors, rows = _led_rows(own, models, str(owner), ids, num_rows)
    donors |= {
        index: having
        for index, having in chosen.donors.items()
        if index in donors or index in chosen.forced
    }
    rows[list(donors)] = -1
    everyone = {base_name: own, **models}
    view = VocabularyView(
        base,
        rows,
        _mean_rows(everyone, donors),
        fallback=base,
        added=tuple(added),
        padding=chosen.padding,
    )
    shared = base if view.in_place and not added else view
    of_experts = _mean_rows(everyone, chosen.donors)
    return shared, {
        name: _expert_view(model, ids, num_rows, shared, chosen, of_experts)
        for name, model in models.items()
    }


def _plain_tokens(tokens: Mapping[str, TokenRow], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """Entries of tokens that are in no vocabulary, with their new ids."""
    first = max(ids.values()) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    return [
        {"id": first + at, "content": token, **plain, "normalized": True}
        for at, token in enumerate(token for token in tokens if token not in ids)
    ]


def _without_gaps(where: str, ids: Mapping[str, int]) -> int:
    """Return the number of tokens, of which every id below has one."""
    if set(ids.values()) != set(range(len(ids))):
        raise CheckpointMismatchError(
            f"{where}, tokenizer.pad_to_multiple_of: the ids of the vocabulary must be without "
            f"gaps; got {len(ids)} tokens with ids up to {max(ids.values())}. Leave it out."
        )
    return len(ids)


def _chosen(
    where: str,
    tokens: Mapping[str, TokenRow],
    everyone: Mapping[str, _Model],
    ids: Mapping[str, int],
    padding: int,
) -> _Chosen:
    donors: dict[int, list[tuple[str, int]]] = {}
    for token, row in tokens.items():
        donors[ids[token]] = []
        if row.from_ is None:
            continue
        model, there = everyone[row.from_], token if row.token is None else row.token
        found = model.row(there) if isinstance(there, str) else there
        if found is None or not 0 <= found < model.num_rows:
            raise CheckpointMismatchError(
                f"{where}, tokenizer.tokens.{token}: must name a token with a row in the model "
                f"'{row.from_}'; got {there!r}, with {model.num_rows} rows. Name another."
            )
        donors[ids[token]] = [(row.from_, found)]
    forced = frozenset(ids[token] for token, row in tokens.items() if row.force)
    return _Chosen(donors, forced, padding)


def _model(where: str, checkpoint: Checkpoint, base: _Model | None) -> _Model:
    embedding = checkpoint.input_embedding
    if embedding is None:
        raise CheckpointError(
            f"{where} ({checkpoint.folder}): rows by token need an input embedding of a usual "
            f"name; got none. Use vocabulary: refuse."
        )
    num_rows = checkpoint.shape(embedding)[0]
    by_token = _names_by_token(checkpoint)
    for name in checkpoint.names:
        shape = checkpoint.shape(name)
        unknown = module_kind(name) == "embeddings" and num_rows in shape
        if shape[0] != num_rows if name in by_token else unknown:
            raise CheckpointError(
                f"{where}, tensor '{name}': rows must go by token as those of '{embedding}', "
                f"{checkpoint.shape(embedding)}; got {shape}. Use vocabulary: refuse."
            )
    return _Model(checkpoint, _tokens(where, checkpoint, base), embedding, num_rows)


def _names_by_token(checkpoint: Checkpoint) -> tuple[str, ...]:
    wanted = (checkpoint.input_embedding, OUTPUT_HEAD, _HEAD_BIAS)
    return tuple(name for name in wanted if name is not None and name in checkpoint)


def _tokens(where: str, checkpoint: Checkpoint, base: _Model | None) -> Tokens:
    found = read_tokens(checkpoint.folder)
    if found is not None:
        return found
    if base is None:
        raise CheckpointMismatchError(
            f"{where} ({checkpoint.folder}): rows by token need the base's tokenizer; got no "
            f"file of one. Save its tokenizer with transformers, or use vocabulary: refuse."
        )
    differences = vocabulary_difference(base.checkpoint.folder, checkpoint.folder)
    if differences:
        raise CheckpointMismatchError(
            f"{where} ({checkpoint.folder}): tokens added to no vocabulary must be the base's; "
            f"got {'; '.join(differences)}. Save its tokenizer with transformers."
        )
    return base.tokens


def _new_tokens(where: str, model: _Model, ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """Entries of an expert's added tokens that have no id yet, with their new ids."""
    strange = [token for token in model.tokens.ids if token not in ids]
    strange = sorted(token for token in strange if token not in model.tokens.added)
    if strange:
        raise CheckpointMismatchError(
            f"{where}: a union takes in added tokens only; got {len(strange)} tokens of another "
            f"segmentation, e.g. {', '.join(map(repr, strange[:_NUM_EXAMPLES]))}. "
            f"Use vocabulary: base."
        )
    wanted = [
        entry
        for token, entry in model.tokens.added.items()
        if token not in ids and model.row(token) is not None
    ]
    first = max(ids.values()) + 1
    return [{**entry, "id": first + at} for at, entry in enumerate(wanted)]


def _num_rows(own: _Model, models: Mapping[str, _Model], ids: Mapping[str, int]) -> int:
    everyone = (own, *models.values())
    had = (at for token, at in ids.items() if any(m.row(token) is not None for m in everyone))
    return max(own.num_rows, *(at + 1 for at in had))


def _donors(
    where: str,
    own: _Model,
    models: Mapping[str, _Model],
    ids: Mapping[str, int],
    num_rows: int,
    chosen: _Chosen,
) -> dict[int, list[tuple[str, int]]]:
    """Experts and their rows, by the shared id of each token that the base lacks."""
    found: dict[int, list[tuple[str, int]]] = {}
    for token, index in ids.items():
        if own.row(token) is None:
            rows = [(name, model.row(token)) for name, model in sorted(models.items())]
            found[index] = [(name, row) for name, row in rows if row is not None]
    for index in range(own.num_rows, num_rows):
        if not found.get(index) and index not in chosen.donors:
            raise CheckpointMismatchError(
                f"{where}: every id of a union must be a token with a row in some model; got "
                f"id {index} of the base's tokenizer without one (the base has {own.num_rows} "
                f"rows). Resize the base's embedding to its tokenizer."
            )
    return found


def _led_rows(
    own: _Model, models: Mapping[str, _Model], owner: str, ids: Mapping[str, int], num_rows: int
) -> tuple[dict[int, list[tuple[str, int]]], Int64[Tensor, "rows"]]:
    """Return donors of the rows that the base lacks in an expert's vocabulary, and its rows."""
    rows = torch.full((num_rows,), -1, dtype=torch.int64)
    lead = models[owner]
    donors = {index: [(owner, index)] for index in range(min(num_rows, lead.num_rows))}
    for token, index in ids.items():
        row = own.row(token)
        having = [(name, model.row(token)) for name, model in sorted(models.items())]
        donors[index] = [(name, at) for name, at in having if at is not None]
        if row is not None:
            rows[index] = row
    return {
        index: donors.get(index, []) for index in torch.nonzero(rows < 0).flatten().tolist()
    }, rows


def _mean_rows(models: Mapping[str, _Model], donors: Donors) -> Callable[[str, Tensor], Tensor]:
    """Give absent rows the mean of the rows of the models that have them."""

    def mean(name: str, absent: Tensor) -> Tensor:
        wanted = absent.tolist()
        having = {donor for at in wanted for donor, _ in donors[at]}
        tensors = {
            donor: models[donor].checkpoint.tensor(_held(models[donor].checkpoint, name))
            for donor in having
        }
        first = next(iter(models.values())).checkpoint
        zeros = torch.zeros(first.shape(_held(first, name))[1:])
        return torch.stack(
            [
                torch.stack([tensors[donor][row].float() for donor, row in donors[at]]).mean(0)
                if donors[at]
                else zeros
                for at in wanted
            ]
        )

    return mean


def _expert_view(
    model: _Model,
    ids: Mapping[str, int],
    num_rows: int,
    base: Checkpoint,
    chosen: _Chosen,
    of_chosen: Callable[[str, Tensor], Tensor],
) -> VocabularyView:
    rows = torch.full((num_rows,), -1, dtype=torch.int64)
    for token, index in ids.items():
        row = model.row(token)
        if row is not None and index not in chosen.forced:
            rows[index] = row
    is_chosen = torch.zeros(num_rows, dtype=torch.bool)
    is_chosen[list(chosen.donors)] = True

    def missing(name: str, absent: Tensor) -> Tensor:
        found = base.tensor(_held(base, name)).index_select(0, absent)
        own = is_chosen[absent]
        if bool(own.any()):
            found[own] = of_chosen(name, absent[own]).to(found.dtype)
        return found

    return VocabularyView(model.checkpoint, rows, missing, fallback=base, padding=chosen.padding)


def _held(checkpoint: Checkpoint, name: str) -> str:
    """A tensor's name; the input embedding's for a tied output head that is not stored."""
    return name if name in checkpoint else checkpoint.input_embedding or name


def _with_vocab_size(config: dict[str, Any], num_rows: int) -> dict[str, Any]:
    changed = dict(config)
    if isinstance(changed.get("text_config"), dict):
        changed["text_config"] = _with_vocab_size(changed["text_config"], num_rows)
    if "vocab_size" in changed:
        changed["vocab_size"] = num_rows
    return changed
