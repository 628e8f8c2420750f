"""A guard's chat template, and the shape of content that it shows to its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from safemerge.config.judge import GuardJudge
from safemerge.engines.answer_end import sorted_ends, turn_end
from safemerge.engines.chat import dated
from safemerge.errors import CheckpointError
from safemerge.scoring.guard import FAMILIES, GuardAsk
from safemerge.scoring.judge import Exchange

LEFT_OUT = "the judge's chat template leaves out part of the request or of the answer"
"""Why a question is not asked that the model would not see whole."""

_PROBE = Exchange("Which way is the sea?", "Down the hill, then to the left.")


class GuardTemplate:
    """From a question to its tokens, and never to those of an empty conversation.

    Some templates take a turn's content as text, others as a list of typed parts (Llama Guard
    3 1B, Llama Guard 4); one that gets the other shape may leave the content out without a
    word, and a guard that sees nothing says safe. So a probe is rendered first, as text and
    then as parts, until the template shows it.

    Args:
        spec: The declared judge.
        tokenizer: Its tokenizer.

    Raises:
        CheckpointError: If the family needs a chat template and there is none, or the one there
            is shows the conversation in neither shape.
    """

    def __init__(self, spec: GuardJudge, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._typed = False
        (ask, *_) = FAMILIES[spec.family].ask(_PROBE, spec)
        if ask.text:
            return
        if not getattr(tokenizer, "chat_template", None):
            raise CheckpointError(
                f"judge '{spec.name}': the tokenizer must have a chat template; got none. "
                "Add chat_template.jinja to the judge's folder."
            )
        reasons = []
        for self._typed in (False, True):
            text, reason = self._shown(ask)
            if text is not None:
                return
            reasons.append(reason)
        raise CheckpointError(
            f"judge '{spec.name}': the chat template of {spec.source} must show the request and "
            f"the answer to the model; got, with content as text, {reasons[0]}; as typed parts, "
            f"{reasons[1]}. Check judge.family, judge.template_arguments and the judge's "
            "chat_template.jinja."
        )

    def token_ids(self, ask: GuardAsk) -> list[int] | None:
        """Return a question's tokens; None if the template leaves out part of its content."""
        text = ask.text or self._shown(ask)[0]
        if text is None:
            return None
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def ends(self, named: Iterable[int] = ()) -> tuple[int, ...]:
        """Return the tokens that end a reply: the template's, the tokenizer's and those named.

        Args:
            named: Ends that the judge's generation settings name.
        """
        turn = None
        if getattr(self._tokenizer, "chat_template", None):
            try:
                text = self._conversation(_turns(_PROBE), {}, ready=False)
                turn = turn_end(self._tokenizer, text, _PROBE.response)
            except Exception:  # noqa: BLE001
                # A border, as below: a guard's template need not know turns of its own.
                turn = None
        return sorted_ends(self._tokenizer, [turn, self._tokenizer.eos_token_id, *named])

    def _shown(self, ask: GuardAsk) -> tuple[str | None, str]:
        """The text that shows every turn, or why there is none."""
        try:
            text = self._rendered(ask)
        except Exception as error:  # noqa: BLE001
            # A border: a template is somebody else's program, and may raise anything. What it
            # says is not told: it may repeat what was judged.
            return None, type(error).__name__
        # Blanks may differ, since templates trim.
        whole = " ".join(text.split())
        if all(" ".join(message["content"].split()) in whole for message in ask.messages):
            return text, ""
        return None, f"{len(text)} characters without them"

    def _rendered(self, ask: GuardAsk) -> str:
        return self._conversation(ask.messages, ask.template_arguments, ready=True)

    def _conversation(
        self, turns: Sequence[Mapping[str, str]], arguments: Mapping[str, Any], *, ready: bool
    ) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            [self._turn(message) for message in turns],
            tokenize=False,
            add_generation_prompt=ready,
            **{**dated({}), **arguments},
        )
        return rendered

    def _turn(self, message: Mapping[str, str]) -> dict[str, Any]:
        if not self._typed:
            return dict(message)
        return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _turns(exchange: Exchange) -> tuple[Mapping[str, str], ...]:
    return (
        {"role": "user", "content": exchange.prompt},
        {"role": "assistant", "content": exchange.response},
    )
