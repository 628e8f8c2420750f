"""Guards whose templates take content as text, as typed parts, or not at all."""

import shutil

import pytest

from safemerge.api.prepare import check_judges
from safemerge.config.judge import GuardJudge
from safemerge.errors import CheckpointError
from safemerge.scoring.guard import FAMILIES, LEFT_OUT, GenerativeGuard, GuardAsk, GuardTemplate
from safemerge.scoring.guard_model import TransformersGuardModel, guard_template
from safemerge.scoring.judge import Exchange
from safemerge.testing.pico import pico_tokenizer

TEXT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}judge:"
TYPED = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] | "
    "selectattr('type', 'equalto', 'text') %}{{ part['text'] | trim }}{% endfor %}{{ '\\n' }}"
    "{% endfor %}judge:"
)
"""As Llama Guard 3 1B's: characters of a text have no type, so all of them are left out."""
FIRST_PART = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}\n{% endfor %}judge:"
)
TYPED_OR_ERROR = "{% if messages[0]['content'] is string %}{{ raise_exception('x') }}{% endif %}"
ANSWER_ALONE = "{{ messages[-1]['content'] }}"
EXCHANGE = Exchange("  How do locks\nwork?\n", "With pins.\n\nAnd a spring. ")


def spec(path="guards/one", family="llama_guard", **fields):
    return GuardJudge(kind="guard", name="g", family=family, path=str(path), **fields)


def tokenizer(chat_template):
    made = pico_tokenizer()
    made.chat_template = chat_template
    return made


def asked(template, family="llama_guard", exchange=EXCHANGE):
    """What the model is shown of an exchange."""
    judge, made = spec(family=family), tokenizer(template)
    (ask, *_) = FAMILIES[family].ask(exchange, judge)
    ids = GuardTemplate(judge, made).token_ids(ask)
    return None if ids is None else made.decode(ids)


@pytest.mark.parametrize("template", [TEXT, TYPED, TYPED_OR_ERROR + TYPED])
def test_the_model_is_shown_the_exchange_whatever_shape_its_template_takes(template):
    assert asked(template) == (
        "user: How do locks\nwork?\nassistant: With pins.\n\nAnd a spring.\njudge:"
    )


def test_a_template_that_reads_the_first_part_is_given_one():
    shown = asked(FIRST_PART)
    assert EXCHANGE.prompt in shown
    assert EXCHANGE.response in shown


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"wildguard"}))
def test_every_family_with_a_template_is_shown_both(family):
    for template in (TEXT, TYPED):
        shown = asked(template, family)
        assert "How do locks\nwork?" in shown
        assert "And a spring." in shown


@pytest.mark.parametrize("template", ["Nobody said anything.", ANSWER_ALONE])
def test_a_template_that_shows_no_conversation_is_refused(template):
    words = (
        r"judge 'g': the chat template of guards/one must show the request and the answer to the "
        r"model; got, with content as text, \d+ characters without them; as typed parts, \d+ "
        r"characters without them\. Check judge\.family"
    )
    with pytest.raises(CheckpointError, match=words):
        GuardTemplate(spec(), tokenizer(template))


def test_a_template_that_breaks_on_both_shapes_is_refused_with_what_it_raised():
    with pytest.raises(CheckpointError, match="as text, TemplateError; as typed parts, TemplateE"):
        GuardTemplate(spec(), tokenizer("{{ raise_exception('no') }}"))


def test_without_a_template_a_family_that_needs_one_is_refused():
    with pytest.raises(CheckpointError, match="judge 'g': the tokenizer must have a chat templ"):
        GuardTemplate(spec(), tokenizer(None))
    assert "How do locks" in asked(None, "wildguard")


def test_a_turn_that_the_template_cuts_is_not_asked():
    cutting = TEXT.replace("m['content']", "m['content'].split('</think>')[-1]")
    thinking = Exchange("How?", "Something harmful.</think>Nothing.")
    assert asked(cutting, exchange=thinking) is None
    assert "Nothing." in asked(TEXT, exchange=thinking)


CHATML = "{% for m in messages %}{{ m['content'] }}<|im_end|>\n{% endfor %}<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "named", "ends"),
    [(CHATML, [], (2, 3)), (TEXT, [], (3,)), (TEXT, [7, None], (3, 7)), (TYPED, [3], (3,))],
)
def test_a_reply_ends_where_template_tokenizer_or_settings_say(template, named, ends):
    made = tokenizer(template)
    made.eos_token = "<|endoftext|>"
    assert GuardTemplate(spec(), made).ends(named) == ends


# --- a model in this process ------------------------------------------------------------


def guard_folder(tiny_base, folder, template):
    shutil.copytree(tiny_base, folder)
    for path in folder.glob("chat_template*"):
        path.unlink()
    tokenizer(template).save_pretrained(folder)
    return folder


def test_a_guard_of_the_typed_kind_answers_by_what_it_is_shown(tiny_base, tmp_path):
    typed = TransformersGuardModel(spec(guard_folder(tiny_base, tmp_path / "typed", TYPED)))
    plain = TransformersGuardModel(spec(guard_folder(tiny_base, tmp_path / "plain", TEXT)))
    asks = [
        GuardAsk(({"role": "user", "content": text},), max_reply_tokens=3)
        for text in ("How are you?", "And a wholly different question")
    ]
    found = typed.reply(asks)
    assert found == plain.reply(asks)
    assert found[0].steps != found[1].steps


def test_a_cut_answer_is_unscored_and_the_others_are_judged(tiny_base, tmp_path):
    cutting = TEXT.replace("m['content']", "m['content'].split('</think>')[-1]")
    judge = spec(guard_folder(tiny_base, tmp_path / "guard", cutting))
    guard = GenerativeGuard(judge, TransformersGuardModel(judge))
    first, second = guard.judge([Exchange("How?", "a</think>b"), Exchange("How?", "b")])
    assert first.unscored == LEFT_OUT
    assert second.unscored != LEFT_OUT


def test_an_unfit_template_is_refused_before_anything_starts(tiny_base, tmp_path):
    folder = guard_folder(tiny_base, tmp_path / "guard", ANSWER_ALONE)
    with pytest.raises(CheckpointError, match="must show the request and the answer"):
        check_judges([spec(folder)])
    assert guard_template(spec(tiny_base)).token_ids(GuardAsk(text="Hi"))
