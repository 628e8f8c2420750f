import pytest

from safemerge.config.document import parse_document
from safemerge.config.metric import suite_metrics
from safemerge.config.suite import LmEval, SuiteSpec
from safemerge.errors import ConfigError

RANGE = {"source": {"kind": "lm_eval", "stop": 5}}
TOLD = {"task": "gsm8k", "metrics": {"exact_match": "maximize", "perplexity": "minimize"}}
SUITE = {"name": "maths", "lm_eval": TOLD, "search": RANGE, "report": RANGE}


def suite(**changes):
    return parse_document({**SUITE, **changes}, SuiteSpec, where="s")


def test_lm_eval_stands_for_a_task_of_that_kind():
    made = suite()
    plain = {key: value for key, value in SUITE.items() if key != "lm_eval"}
    task = {"kind": "lm_eval", **TOLD}
    assert parse_document({**plain, "task": task}, SuiteSpec, where="s") == made
    assert isinstance(made.task, LmEval)
    assert {row.name: row.direction for row in made.measures} == TOLD["metrics"]
    assert list(suite_metrics([made])) == ["maths.exact_match", "maths.perplexity"]


def test_a_suite_that_was_written_out_is_read_again():
    made = suite()
    assert SuiteSpec.model_validate_json(made.model_dump_json()) == made


def test_task_files_are_taken_from_the_studys_folder(tmp_path):
    made = suite(lm_eval={**TOLD, "include_path": "tasks"}).located(tmp_path)
    assert made.task.include_path == str(tmp_path / "tasks")
    assert suite().located(tmp_path) == suite()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lm_eval": "gsm8k"}, "lm_eval: must name a task and its metrics; got 'gsm8k'"),
        ({"lm_eval": {**TOLD, "metrics": {}}}, r"s: lm_eval\.metrics: must have at least 1 item"),
        ({"lm_eval": {**TOLD, "limit": 5}}, r"lm_eval\.limit: unknown key; got 5\. Known: allow"),
        (
            {"search": {"source": {"kind": "file", "path": "x.jsonl"}}},
            "kind must be lm_eval for an lm_eval task, and for no other; got file for a lm_eval",
        ),
        ({"report": {**RANGE, "prompt": "Say: {x}"}}, "prompts of its own; got prompt. Drop it"),
        ({"group": "topic", "search": {**RANGE, "system": "s"}}, "of its own; got group, system"),
    ],
)
def test_what_an_lm_eval_suite_cannot_have_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        suite(**changes)


def test_another_task_takes_no_documents_of_the_harness():
    rest = {key: value for key, value in SUITE.items() if key != "lm_eval"}
    task = {"kind": "over_refusal"}
    with pytest.raises(ConfigError, match="for no other; got lm_eval for a over_refusal"):
        parse_document({**rest, "task": task}, SuiteSpec, where="s")


PROMPTS = {"source": {"kind": "file", "path": "r.jsonl"}, "label": "answer"}
NUMERIC = {"name": "sums", "task": {"kind": "numeric"}, "search": PROMPTS, "report": PROMPTS}


def test_template_arguments_and_thoughts_count_only_where_they_are_set():
    made = parse_document(NUMERIC, SuiteSpec, where="s")
    assert not {"chat", "strip_thinking"} & set(made.resolved()), "digests of before stay"
    own = {"chat": {"enable_thinking": True}, "strip_thinking": True}
    made = parse_document({**NUMERIC, **own}, SuiteSpec, where="s")
    assert {key: made.resolved()[key] for key in own} == own


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"strip_thinking": True, "task": {"kind": "classification", "labels": ["a", "b"]}},
            "strip_thinking must be for answers that are generated; got it with a classification",
        ),
        ({"chat": {"tools": "x"}}, "got 'tools', which safemerge or transformers sets"),
        ({"chat": {"x": [1]}}, r"s: chat\.x"),
    ],
)
def test_template_arguments_and_thoughts_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        parse_document({**NUMERIC, **changes}, SuiteSpec, where="s")


def test_template_arguments_of_a_harness_task_need_its_chat_template():
    with pytest.raises(ConfigError, match="chat must be for prompts in the chat format; got it"):
        suite(chat={"enable_thinking": False})
    told = {**TOLD, "chat_template": True}
    assert suite(lm_eval=told, chat={"enable_thinking": False}).chat == {"enable_thinking": False}
