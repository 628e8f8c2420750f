"""The models of a pool on one engine at a time: swapped live where they fit, else restarted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from safemerge.config.chat import Scalar
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.models import models_recipe
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Engine, Sampling, TokenizedPrompt
from safemerge.errors import (
    CheckpointMismatchError,
    ConfigError,
    EngineError,
    ScoringError,
    UserError,
)
from safemerge.generation.draft import drafted_question
from safemerge.generation.record import Ask, Outcome, TaskKind
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.records import Response
from safemerge.scoring.coherence import is_incoherent
from safemerge.scoring.judge import Exchange, Judge, Judgement
from safemerge.scoring.refusal import is_refusal
from safemerge.weights.adapter import is_adapter

TOO_LONG = "prompt and answer exceed the context"
CUT = "cut at max_tokens"
"""Why an answer without an end is dropped: trained on, it would teach to end in mid-sentence."""


def model_groups(models: Sequence[CheckpointRef]) -> list[list[CheckpointRef]]:
    """Sort models into groups that one engine can hold one after the other.

    Args:
        models: Resolved to folders.

    Returns:
        Groups in the order of their first models; the members of a group agree in architecture,
        vocabulary, number type and end of turn.

    Raises:
        ConfigError: If a model is a LoRA adapter alone.
        CheckpointError: If a model cannot be read, or has no chat template.
    """
    groups: list[list[CheckpointRef]] = []
    for ref in models:
        if is_adapter(str(ref.path)):
            raise ConfigError(
                f"models.{ref.name}: must be a whole checkpoint; got the LoRA adapter "
                f"{ref.path}. Merge it into its base first (safemerge merge), or train it with "
                "output: dense."
            )
        ResidentCheckpoints.open(_all_of([ref]))
        ends = ChatFormat(str(ref.path)).end_of_turn_id()
        for group in groups:
            if _fits(group[0], ref) and ends == ChatFormat(str(group[0].path)).end_of_turn_id():
                group.append(ref)
                break
        else:
            groups.append([ref])
    return groups


def _all_of(group: Sequence[CheckpointRef]) -> MergeRecipe:
    """Every model of a group in one recipe; a recipe needs an expert beside its base."""
    base, *others = group
    twin = base.model_copy(update={"name": f"{base.name[:60]}-2"})
    return models_recipe(base, others or [twin])


def _fits(first: CheckpointRef, other: CheckpointRef) -> bool:
    try:
        ResidentCheckpoints.open(_all_of([first, other]))
    except CheckpointMismatchError:
        return False
    return True


def chat_formats(
    models: Sequence[CheckpointRef], arguments: Mapping[str, Scalar]
) -> dict[str, ChatFormat]:
    """Return each model's chat format, with those of the arguments that its template reads.

    Raises:
        ConfigError: If no model's template reads an argument.
        CheckpointError: If a model's template cannot be used.
    """
    formats = {ref.name: ChatFormat(str(ref.path)) for ref in models}
    for name in arguments:
        if not any(chat.reads(name) for chat in formats.values()):
            raise ConfigError(
                f"chat.{name}: must be an argument that a model's chat template reads; got one "
                "that none names. Check the name, or remove it."
            )
    return {
        model: chat.with_arguments({key: arguments[key] for key in arguments if chat.reads(key)})
        for model, chat in formats.items()
    }


class ModelPool:
    """Answers for any model of the pool, with one engine alive at a time.

    Args:
        models: Resolved to folders.
        start_engine: Starts an engine that can hold every model of a recipe.
        max_model_len: The engine's context, in tokens.
        chat: Arguments of the models' chat templates; see `chat_formats`.
    """

    def __init__(
        self,
        models: Sequence[CheckpointRef],
        *,
        start_engine: Callable[[MergeRecipe], Engine],
        max_model_len: int,
        chat: Mapping[str, Scalar] = MappingProxyType({}),
    ) -> None:
        self._start_engine = start_engine
        self._max_model_len = max_model_len
        self._groups = model_groups(models)
        self._chats = chat_formats(models, chat)
        self._engine: Engine | None = None
        self._held: list[CheckpointRef] | None = None
        self._loaded: str | None = None

    def reply(self, model: str, asks: Sequence[Ask]) -> list[Response | None]:
        """Answer prompts with one model.

        Args:
            model: Name in the pool.
            asks: Prompts with distinct ids.

        Returns:
            An answer a prompt, in order; None where prompt and answer exceed the context.

        Raises:
            EngineError: If the engine failed; it is closed, and started anew when next needed.
            CheckpointError: If a model's files changed since they were opened.
            DataError: If the model's chat template takes no system message.
        """
        prompts = {}
        for ask in asks:
            chat = self._chats[model]
            ids = chat.prompt_ids(ask.prompt, system=ask.system, where=f"model '{model}'")
            if len(ids) + ask.max_tokens <= self._max_model_len:
                drawn = None
                if ask.temperature is not None:
                    drawn = Sampling(ask.temperature, ask.top_p, ask.seed)
                prompts[ask.id] = TokenizedPrompt(
                    ask.id, tuple(ids), ask.max_tokens, sampling=drawn
                )
        try:
            engine = self._engine_with(model)
            found = engine.generate(list(prompts.values())) if prompts else []
        except (EngineError, UserError):
            self.close()
            raise
        except Exception as error:
            # An engine whose process died raises types of its own; nothing of it is reused.
            self.close()
            raise EngineError(f"model '{model}': the engine failed; got: {error!r}.") from error
        by_id = {response.sample_id: response for response in found}
        if set(by_id) != set(prompts):
            self.close()
            raise EngineError(
                f"model '{model}': every prompt must be answered; got {len(by_id)} of "
                f"{len(prompts)}."
            )
        return [by_id.get(ask.id) for ask in asks]

    def _engine_with(self, model: str) -> Engine:
        group = next(item for item in self._groups if any(ref.name == model for ref in item))
        if self._engine is None or self._held is not group:
            self.close()
            self._engine, self._held = self._start_engine(_all_of(group)), group
        if self._loaded != model:
            self._loaded = None
            alone = Linear(name="linear", weights={model: 1.0})
            self._engine.load(_all_of(group).model_copy(update={"method": alone}))
            self._loaded = model
        return self._engine

    def close(self) -> None:
        """Let go of the engine, if one is alive."""
        engine, self._engine = self._engine, None
        self._held = self._loaded = None
        if engine is not None:
            engine.close()


def outcomes(
    kind: TaskKind,
    asks: Sequence[Ask],
    replies: Sequence[Response | None],
    *,
    judge: Judge | None = None,
) -> list[Outcome]:
    """Decide what of a model's replies is kept.

    Args:
        kind: ``draft`` keeps the question found in a reply, ``answer`` coherent replies,
            ``refuse`` what the judge takes for a refusal, and nothing else. Answers and refusals
            that reach their token limit are dropped; what a judge finds in them is reported first.
        asks: What was asked.
        replies: See `ModelPool.reply`.
        judge: Needed by ``refuse``.

    Raises:
        ScoringError: If the judge as a whole cannot work, or is missing.
    """
    found = [Outcome(dropped=TOO_LONG) for _ in asks]
    answered = {index: reply for index, reply in enumerate(replies) if reply is not None}
    if kind == "refuse":
        if judge is None:
            raise ScoringError("generate: refusals must be marked by a judge; got none.")
        exchanges = [Exchange(asks[index].prompt, reply.text) for index, reply in answered.items()]
        judgements = judge.judge(exchanges) if exchanges else []
        for (index, reply), judgement in zip(answered.items(), judgements, strict=True):
            made = _refusal(reply.text.strip(), judgement, judge.threshold)
            is_cut = made.text is not None and not reply.finished
            found[index] = Outcome(dropped=CUT) if is_cut else made
        return found
    for index, reply in answered.items():
        if kind == "draft":
            question = drafted_question(reply.text, finished=reply.finished)
            found[index] = Outcome(text=question) if question else Outcome(dropped="no question")
        elif is_incoherent(reply.text):
            found[index] = Outcome(dropped="incoherent answer")
        elif not reply.finished:
            found[index] = Outcome(dropped=CUT)
        else:
            found[index] = Outcome(text=reply.text.strip())
    return found


def _refusal(text: str, judgement: Judgement, threshold: float) -> Outcome:
    """A refusal is coherent, harmless by the judge, and a refusal by the judge or the detector."""
    if judgement.unscored is not None or judgement.harm is None:
        return Outcome(dropped=f"unscored: {judgement.unscored}", unscored=True)
    refuses = judgement.refusal if judgement.refusal is not None else is_refusal(text)
    if is_incoherent(text):
        return Outcome(dropped="incoherent answer")
    if not refuses:
        return Outcome(dropped="no refusal")
    flagged = judgement.harm > threshold
    return Outcome(dropped="flagged by the judge") if flagged else Outcome(text=text)
