import json
import shutil
from dataclasses import replace

import pytest

from safemerge.config.suite import Classification, Harm
from safemerge.data.sample import Sample
from safemerge.data.suite import LoadedSuite
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import TokenizedPrompt
from safemerge.errors import CheckpointError, ConfigError, DataError
from safemerge.testing.pico import END_OF_TURN, pico_tokenizer


@pytest.fixture(scope="module")
def chat(tiny_base):
    return ChatFormat(tiny_base)


def suite(*samples, labels=None, max_tokens=4):
    task = (
        Classification(kind="classification", labels=labels)
        if labels
        else Harm(kind="harm", max_tokens=max_tokens)
    )
    return LoadedSuite("mood", task, "search", samples)


def test_a_prompt_is_a_user_message_ready_for_the_assistant(chat):
    assert chat.tokenizer.decode(chat.prompt_ids("Hi <b>!")) == (
        "<|im_start|>user\nHi <b>!<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_system_message_comes_first_and_an_empty_one_is_not_left_out(chat):
    assert chat.tokenizer.decode(chat.prompt_ids("Hi", system="Be brief.")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.prompt_ids("Hi", system="") != chat.prompt_ids("Hi")


def test_special_tokens_are_single_tokens_and_none_is_added(chat):
    ids = chat.prompt_ids("Hi")
    start, end = chat.tokenizer.convert_tokens_to_ids(["<|im_start|>", END_OF_TURN])
    assert ids[0] == start
    assert [ids.count(start), ids.count(end)] == [2, 1]


def test_the_end_of_turn_is_the_templates_own(chat):
    assert chat.end_of_turn_id() == chat.tokenizer.convert_tokens_to_ids(END_OF_TURN)


def saved(folder, template):
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def test_the_end_of_turn_of_a_template_that_ends_in_text_is_end_of_sequence(tmp_path):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    chat = ChatFormat(saved(tmp_path, template))
    assert chat.end_of_turn_id() == chat.tokenizer.eos_token_id
    other = ChatFormat(
        saved(tmp_path / "other", template.replace("\n{% end", "<|endoftext|>\n{% end"))
    )
    assert other.end_of_turn_id() == 3 != other.tokenizer.eos_token_id


def test_a_tokenizer_without_a_template_is_refused(tmp_path):
    words = r"the tokenizer must have a chat template; got none\. Add chat_template\.jinja"
    with pytest.raises(CheckpointError, match=words):
        ChatFormat(saved(tmp_path, None))


def test_a_length_that_is_no_number_is_refused(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": "1-"}))
    with pytest.raises(CheckpointError, match=r"model_max_length must be a number; got '1-'"):
        ChatFormat(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, tiny_base):
    shutil.copy(tiny_base / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: must hold a tokenizer; got: .+"):
        ChatFormat(tmp_path)


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
DROPS_SYSTEM = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "got"),
    [(NO_SYSTEM, "System role not supported"), (DROPS_SYSTEM, "a prompt without it")],
)
def test_a_template_that_takes_no_system_message_is_a_data_error_only_where_one_is_asked_for(
    tmp_path, template, got
):
    chat = ChatFormat(saved(tmp_path, template))
    (plain,) = chat.tokenize(suite(Sample("s:1", "one")), max_model_len=256)
    assert chat.tokenizer.decode(plain.token_ids) == "one"
    asked = suite(Sample("s:1", "one", system=" Be brief.\n"))
    words = rf"suite 'mood', search: the chat template of {tmp_path} must take a system message; "
    with pytest.raises(DataError, match=rf"{words}got: {got}\. Drop `system`"):
        chat.tokenize(asked, max_model_len=256)


SHOWN = "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    ("template", "got"),
    [
        ("{{ messages[0]['content'] }", "unexpected '}'"),
        ("{{ messages[0]['name']['first'] }}", "no attribute 'name'"),
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ 1 // 0 }}", "by zero"),
        ([{"name": "rag", "template": SHOWN}], "multiple chat templates with no default"),
    ],
)
def test_a_template_that_cannot_be_used_at_all_is_refused_at_once(tmp_path, template, got):
    words = rf"{tmp_path}: the chat template must take the turns user; got: .*{got}.*\. Correct"
    with pytest.raises(CheckpointError, match=words):
        ChatFormat(saved(tmp_path, template))


@pytest.mark.parametrize(
    ("template", "got"),
    [
        ("{% for m in messages if m['role'] == 'human' %}{{ m }}{% endfor %}Yes?", "another"),
        ("{% for c in messages[0]['content'] %}{{ c['text'] }}{% endfor %}Yes?", "another"),
        ("{{ messages[0]['content'] | reverse | join }}", "another"),
        ("{{ messages[0]['content'] | e }}", "another"),
        ("{{ messages[0]['content'][:30] }}", "another"),
        ("  ", "an empty one"),
    ],
)
def test_a_template_that_drops_or_changes_a_users_text_is_refused(tmp_path, template, got):
    words = rf"{tmp_path}: the chat template must show a user's text as it is; got {got}"
    with pytest.raises(CheckpointError, match=words):
        ChatFormat(saved(tmp_path, template))


def test_a_prompt_that_a_template_changes_is_refused_with_its_place(tmp_path):
    chat = ChatFormat(saved(tmp_path, "{{ messages[0]['content'] | replace('secret', '') }}"))
    words = r"suite 'mood', search: the chat template of .* changes or drops: 'a secret'\. Drop"
    with pytest.raises(DataError, match=words):
        chat.tokenize(suite(Sample("s:1", "a secret")), max_model_len=256)


def test_a_template_that_refuses_an_answer_is_refused_at_once(tmp_path):
    template = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    with pytest.raises(CheckpointError, match="the turns user, assistant; got: one turn only"):
        ChatFormat(saved(tmp_path, template + SHOWN))


def test_an_answer_that_nothing_ends_is_refused(tmp_path):
    folder = saved(tmp_path, SHOWN)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    with pytest.raises(CheckpointError, match="an answer must have an end; got a chat template"):
        ChatFormat(folder)


def test_the_end_of_turn_is_the_first_special_token_behind_an_answer(tmp_path):
    turn = "{{ m['content'] }}<|im_end|>\n"
    template = f"{{% for m in messages %}}{turn}{{% endfor %}}<|endoftext|>"
    assert ChatFormat(saved(tmp_path, template)).end_of_turn_id() == 2


@pytest.mark.parametrize("reads", ["strftime_now('%d %b %Y')", "date_string", "date"])
def test_a_template_that_reads_the_day_gets_that_of_its_arguments(tmp_path, reads):
    folder = saved(tmp_path, f"Today is {{{{ {reads} }}}}. {SHOWN}")

    def prompt(arguments):
        chat = ChatFormat(folder, arguments)
        return chat.tokenizer.decode(chat.prompt_ids("Hi"))

    day = "2026-01-31" if reads == "date" else "31 Jan 2026"
    assert prompt({"date": "2026-01-31"}) == f"Today is {day}. Hi"
    if reads != "date":
        assert prompt(None) == "Today is 26 Jul 2024. Hi", "never the clock's"


THINKS = "{% if think is defined and not think %}<think>\n</think>{% else %}<think>\n{% endif %}"


def test_template_arguments_reach_prompts_and_a_suites_come_first(tmp_path):
    folder = saved(tmp_path, SHOWN + "{% if add_generation_prompt %}" + THINKS + "{% endif %}")
    chat = ChatFormat(folder, {"think": False})
    assert chat.tokenizer.decode(chat.prompt_ids("Hi")) == "Hi<think>\n</think>"
    own = replace(suite(Sample("s:1", "Hi")), chat={"think": True})
    (prompt,) = chat.tokenize(own, max_model_len=256)
    assert chat.tokenizer.decode(prompt.token_ids) == "Hi<think>\n"
    assert not chat.opens_thinking(where="w")
    assert chat.with_arguments({"think": True}).opens_thinking(where="w")


def test_an_argument_that_the_template_does_not_read_is_refused(tiny_base):
    words = (
        r"chat\.enable_thinkng: must be an argument that the chat template of .* reads; got one"
    )
    with pytest.raises(ConfigError, match=words):
        ChatFormat(tiny_base, {"enable_thinkng": False})


def test_thoughts_that_answers_cannot_show_are_refused(tmp_path):
    tokenizer = pico_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    tokenizer.save_pretrained(tmp_path)
    words = r"^suite 'x'\.strip_thinking: </think> must be text of an answer; got a tokenizer in"
    with pytest.raises(ConfigError, match=words):
        ChatFormat(tmp_path).opens_thinking(where="suite 'x'")


def test_a_conversation_that_loses_a_message_is_refused(tmp_path):
    chat = ChatFormat(saved(tmp_path, "{{ messages[-1]['content'] }}"))
    turns = [{"role": "user", "content": text} for text in ("first", "second")]
    with pytest.raises(
        CheckpointError, match=r"must show every message as it is; got .* the user's"
    ):
        chat.conversation(turns)


def test_an_empty_label_is_refused(chat):
    with pytest.raises(DataError, match=r"w: a label must have at least one token; got ''\."):
        chat.label_ids(["yes", ""], where="w")


def test_labels_are_their_first_tokens(chat):
    ids = chat.label_ids(["positive", "negative", "zero"], where="w")
    assert [chat.tokenizer.decode(i) for i in ids] == [
        chat.tokenizer.decode(chat.tokenizer(text, add_special_tokens=False)["input_ids"][0])
        for text in ("positive", "negative", "zero")
    ]
    assert len(set(ids)) == 3


def test_labels_with_the_same_first_token_are_refused_and_both_named(chat):
    words = r"w: labels must differ in their first token; got 'start' and 'stop'\. Rename one\."
    with pytest.raises(DataError, match=words):
        chat.label_ids(["neg", "start", "stop"], where="w")


@pytest.mark.parametrize("labels", [["a", "at"], ["\u00e9t\u00e9", "hiver"]])
def test_labels_that_scoring_cannot_tell_apart_by_their_first_tokens_text_are_refused(
    chat, labels
):
    with pytest.raises(DataError, match="w: "):
        chat.label_ids(labels, where="w")


def test_a_suite_is_tokenised_in_order_with_its_limits(chat):
    samples = (Sample("s:1", "one"), Sample("s:2", "two", system="Be brief."))
    assert chat.tokenize(suite(*samples, max_tokens=7), max_model_len=256) == [
        TokenizedPrompt("s:1", tuple(chat.prompt_ids("one")), 7, None),
        TokenizedPrompt("s:2", tuple(chat.prompt_ids("two", system="Be brief.")), 7, None),
    ]


def test_a_classification_is_one_token_among_the_labels(chat):
    (prompt,) = chat.tokenize(
        suite(Sample("s:1", "one", label="yes"), labels=["yes", "no"]), max_model_len=256
    )
    assert prompt.max_tokens == 1
    assert prompt.allowed_ids == chat.label_ids(["yes", "no"], where="w")


def test_a_suites_clashing_labels_are_refused_with_its_name(chat):
    with pytest.raises(DataError, match="suite 'mood', search: labels must differ"):
        chat.tokenize(suite(Sample("s:1", "one"), labels=["star", "stop"]), max_model_len=256)


def test_prompt_and_answer_may_fill_the_context_but_not_exceed_it(chat):
    asked = suite(Sample("s:1", "one"), Sample("s:2", "one two three"), max_tokens=4)
    length = len(chat.prompt_ids("one two three"))
    assert len(chat.tokenize(asked, max_model_len=length + 4)) == 2
    words = rf"suite 'mood', search: .* fit {length + 3} tokens; got {length} \+ 4 for s:2\. Raise"
    with pytest.raises(DataError, match=words):
        chat.tokenize(asked, max_model_len=length + 3)
