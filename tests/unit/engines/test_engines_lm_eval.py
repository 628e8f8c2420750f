"""Our requests and answers against lm-evaluation-harness's own transformers backend."""

import pytest
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.models import models_recipe
from safemerge.config.study import EvaluatorSpec
from safemerge.config.suite import LmEval, SuiteSpec
from safemerge.data.lm_eval_task import FEWSHOT_SEED, LmEvalTask
from safemerge.data.suite import load_suite
from safemerge.engines.chat import ChatFormat
from safemerge.engines.lm_eval_model import LiveModel
from safemerge.engines.lm_eval_requests import LmEvalRequests
from safemerge.engines.transformers_engine import TransformersEngine
from safemerge.errors import ConfigError, DataError
from safemerge.evaluation import evaluate_candidate, prepare_split
from safemerge.testing.lm_eval_tasks import BLANK, PICK, SAY, WHOLE, write_tasks
from safemerge.testing.pico import pico_base

# The harness's imports and its backend warn; nothing of ours does.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CONTEXT = 160
"""Tokens; short, so that whole texts need several windows."""
METRICS = {
    PICK: {"acc": "maximize", "acc_norm": "maximize"},
    BLANK: {"acc": "maximize"},
    SAY: {"exact_match": "maximize"},
    WHOLE: {"word_perplexity": "minimize", "bits_per_byte": "minimize"},
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), count=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # NOTE: larger weights than a fresh model's, so that its answers differ.
    return pico_base(tmp_path_factory.mktemp("model") / "base", seed=5)


@pytest.fixture(scope="module")
def chat(folder):
    return ChatFormat(folder)


@pytest.fixture(scope="module")
def models(folder):
    base = CheckpointRef(name="base", path=str(folder))
    return models_recipe(base, [base.model_copy(update={"name": "same"})])


@pytest.fixture(scope="module")
def engine(models):
    engine = TransformersEngine(models, EvaluatorSpec(dtype="float32", max_num_seqs=4))
    engine.load(models)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def live(engine, chat):
    return LiveModel(engine, chat, max_model_len=2 * CONTEXT)


@pytest.fixture(scope="module")
def theirs(folder):
    return HFLM(
        pretrained=str(folder),
        dtype="float32",
        device="cpu",
        batch_size=4,
        max_length=2 * CONTEXT - 2,
    )


def spec(tasks, name, **changes):
    return LmEval(
        kind="lm_eval", task=name, metrics=METRICS[name], include_path=str(tasks), **changes
    )


def instances(tasks, name, chat, **changes):
    task = LmEvalTask(spec(tasks, name, **changes), where="here")
    suite = SuiteSpec.model_validate(
        {
            "name": "mood",
            "task": task.spec.model_dump(),
            "search": {"source": {"kind": "lm_eval"}},
            "report": {"source": {"kind": "lm_eval"}},
        }
    )
    return task.asked(
        load_suite(suite, "search", harness=task).samples, chat.conversation
    ).instances


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (PICK, {}),
        (PICK, {"num_fewshot": 0}),
        (PICK, {"chat_template": True, "system": "Be brief."}),
        (BLANK, {}),
    ],
    ids=["two-shot", "zero-shot", "chat", "several-contexts"],
)
def test_log_likelihoods_are_those_of_the_harness(live, theirs, tasks, chat, name, changes):
    requests = instances(tasks, name, chat, **changes)
    assert len(requests) == 6 * (4 if name == PICK else 2)
    found, expected = live.loglikelihood(requests), theirs.loglikelihood(requests)
    assert [logprob for logprob, _ in found] == pytest.approx(
        [logprob for logprob, _ in expected], rel=1e-6, abs=0
    )
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert len({round(logprob, 3) for logprob, _ in found}) > 6, "or this test shows nothing"


@pytest.mark.parametrize("max_model_len", [24, 2 * CONTEXT])
def test_whole_texts_have_the_harnesss_windows(engine, folder, tasks, chat, max_model_len):
    theirs = HFLM(
        pretrained=str(folder), dtype="float32", device="cpu", batch_size=4,
        max_length=max_model_len - 2,
    )  # fmt: skip
    requests = instances(tasks, WHOLE, chat)
    asked = LmEvalRequests(requests, chat, max_model_len=max_model_len, max_tokens=1, where="here")
    assert (len(asked.continuations) > len(requests)) == (max_model_len == 24)
    found = LiveModel(engine, chat, max_model_len=max_model_len).loglikelihood_rolling(requests)
    assert found == pytest.approx(theirs.loglikelihood_rolling(requests), rel=1e-6, abs=0)


@pytest.mark.parametrize("changes", [{}, {"chat_template": True}], ids=["plain", "chat"])
def test_answers_are_those_of_the_harness(live, theirs, tasks, chat, changes):
    requests = instances(tasks, SAY, chat, filter="first", **changes)
    # A letter that comes up, so that answers are cut at a stop text.
    for instance in requests:
        instance.arguments[1]["until"] = ["e", "zzz"]
    found = live.generate_until(requests)
    assert found == theirs.generate_until(requests)
    assert any(found)


def test_the_harness_itself_takes_the_live_model(live, theirs, tasks):
    def results(model):
        loaded = TaskManager(include_path=str(tasks), include_defaults=False).load([PICK, WHOLE])
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(FEWSHOT_SEED)
        found = evaluator.evaluate(lm=model, task_dict=loaded, bootstrap_iters=0)["results"]
        return {
            name: {key: value for key, value in row.items() if isinstance(value, float)}
            for name, row in found.items()
        }

    expected = results(theirs)
    assert expected[PICK]
    for name, row in results(live).items():
        assert row == pytest.approx(expected[name], rel=1e-6)


def test_a_candidates_metrics_are_the_harnesss_results(engine, models, theirs, tasks, chat):
    loaded = TaskManager(include_path=str(tasks), include_defaults=False).load(list(METRICS))
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(FEWSHOT_SEED)
    expected = evaluator.evaluate(lm=theirs, task_dict=loaded, bootstrap_iters=0)["results"]
    filters = {PICK: "none", BLANK: "none", SAY: "letter", WHOLE: "none"}
    whole = {"source": {"kind": "lm_eval"}}
    suites = [
        load_suite(
            SuiteSpec.model_validate(
                {
                    "name": name,
                    "lm_eval": spec(tasks, name, filter=filters[name]).model_dump(
                        exclude={"kind"}
                    ),
                    "search": whole,
                    "report": whole,
                }
            ),
            "search",
        )
        for name in METRICS
    ]
    prepared = prepare_split(suites, chat, max_model_len=2 * CONTEXT)
    result = evaluate_candidate(engine, models, prepared, aggregates={}, max_unscored=0.0)
    again = evaluate_candidate(engine, models, prepared, aggregates={}, max_unscored=0.0)
    assert again.metrics == result.metrics
    assert result.num_prompts == 24
    for name, metrics in METRICS.items():
        for metric, direction in metrics.items():
            made = result.metrics[f"{name}.{metric}"]
            assert made.value == pytest.approx(
                expected[name][f"{metric},{filters[name]}"], rel=1e-6
            )
            assert made.low <= made.value <= made.high
            assert (made.n, made.direction) == (6, direction)
    assert [len(result.scores[name]) for name in METRICS] == [6, 6, 6, 0]


# --- refusals ---------------------------------------------------------------------------


def ask(chat, *requests, max_model_len=CONTEXT):
    return LmEvalRequests(
        requests, chat, max_model_len=max_model_len, max_tokens=8, where="suite 's', search"
    )


class Request:
    def __init__(self, kind, *args):
        self.request_type, self.args = kind, args


def test_settings_of_a_request_become_those_of_a_prompt(chat):
    asked = ask(
        chat,
        Request("generate_until", "Hi", {"until": "\n", "max_new_tokens": 3, "temperature": 0.0}),
        Request(
            "generate_until", "Hi", {"until": ["", "a"], "do_sample": False, "temperature": 1}
        ),
    )
    assert [(prompt.max_tokens, prompt.stop) for prompt in asked.prompts] == [
        (3, ("\n",)),
        (8, ("a",)),
    ]


def test_stop_texts_that_are_special_tokens_stop_by_their_ids(chat):
    until = ["<|im_start|>", "\n", "<|im_end|>\n", "a"]
    (special,) = ask(chat, Request("generate_until", "Hi", {"until": until})).prompts
    start = chat.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert (special.stop, special.stop_ids) == (tuple(until), (start,))
    assert chat.tokenizer.decode([start], skip_special_tokens=True) == "", "no text shows it"
    (plain,) = ask(chat, Request("generate_until", "Hi", {"until": "a"})).prompts
    assert plain.stop_ids == ()


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperature": 0.7}])
def test_a_request_that_samples_is_refused(chat, settings):
    with pytest.raises(ConfigError, match="'s', search: answers must be greedy; got a request"):
        ask(chat, Request("generate_until", "Hi", settings))


def test_what_does_not_fit_the_context_is_refused_and_not_cut(chat):
    long = "zq" * 8
    ask(chat, Request("generate_until", long, {}), max_model_len=24)
    with pytest.raises(DataError, match=r"prompt and answer must fit 23 tokens; got 16 \+ 8"):
        ask(chat, Request("generate_until", long, {}), max_model_len=23)
    ask(chat, Request("loglikelihood", long, "zq"), max_model_len=19)
    with pytest.raises(DataError, match=r"must be shorter than 18 tokens; got 16 \+ 2"):
        ask(chat, Request("loglikelihood", long, "zq"), max_model_len=18)


def test_an_empty_context_is_the_first_token_and_an_empty_continuation_is_refused(chat):
    (continuation,) = ask(chat, Request("loglikelihood", "", "zq")).continuations
    assert continuation.context_ids == (chat.tokenizer.bos_token_id,)
    (own,) = ask(chat, Request("loglikelihood", "", "<|im_start|>zq")).continuations
    assert own == continuation
    with pytest.raises(DataError, match="must have a token each"):
        ask(chat, Request("loglikelihood", "Hi", ""))
