import sys

import pytest
import yaml

from safemerge.config.source import LmEvalSource
from safemerge.config.study import StudySpec
from safemerge.config.suite import LmEval
from safemerge.data.lm_eval_task import LmEvalTask
from safemerge.data.suite import load_suites
from safemerge.errors import ConfigError, DataError, PreflightError
from safemerge.testing.landscapes import landscape_study
from safemerge.testing.lm_eval_tasks import BLANK, PICK, SAY, WHOLE, write_tasks

# The harness's imports warn; nothing of ours does.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

ACC = {"acc": "maximize"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), count=12)


def load(tasks, name=PICK, metrics=None, **changes):
    metrics = metrics or ACC
    spec = LmEval(kind="lm_eval", task=name, metrics=metrics, include_path=str(tasks), **changes)
    return LmEvalTask(spec, where="suite 'mood'")


@pytest.fixture
def changed(tasks, tmp_path):
    """A folder with one task like another, but for some keys of its file."""

    def changed(name, **changes):
        document = yaml.safe_load((tasks / f"{name}.yaml").read_text(encoding="utf-8"))
        text = yaml.safe_dump({**document, "task": "changed", **changes})
        (tmp_path / "changed.yaml").write_text(text, encoding="utf-8")
        return tmp_path

    return changed


def samples(task, **range_):
    return task.samples(LmEvalSource(kind="lm_eval", **range_), where="suite 'mood', search")


def test_ranges_of_the_shuffled_documents_are_disjoint_and_stable(tasks):
    task = load(tasks)
    first, second = samples(task, stop=5), samples(task, start=5)
    assert (len(first), len(second)) == (5, 7)
    assert {s.sample_id for s in first}.isdisjoint(s.sample_id for s in second)
    assert samples(load(tasks), stop=5) == first
    assert samples(task, stop=5, order_seed=1) != first
    assert task.positions(first) == sorted(task.positions(first))
    same = samples(load(tasks, BLANK), stop=5)
    assert load(tasks, BLANK).positions(same) == task.positions(first), "the same documents"
    with pytest.raises(DataError, match=r"'mood', search: source 'pick_mood' must give at least"):
        samples(task, start=12)


@pytest.mark.parametrize("name", [PICK, BLANK, WHOLE])
def test_a_documents_own_words_are_compared_without_the_tasks(tasks, name):
    metrics = {WHOLE: {"bits_per_byte": "minimize"}}.get(name, ACC)
    for sample in samples(load(tasks, name, metrics)):
        assert sample.content in sample.prompt
        assert not sample.content.startswith(("Review", "I am"))
        assert not sample.content.endswith("Mood:")


def study(tasks, search, report, **changes):
    def source(**range_):
        return {"source": {"kind": "lm_eval", **range_}}

    lm_eval = {"task": PICK, "metrics": ACC, "include_path": str(tasks)}
    suite = {
        "name": "mood", "lm_eval": lm_eval, "search": source(**search), "report": source(**report),
        "max_similarity": None, **changes,
    }  # fmt: skip
    objective = {"metric": "mood.acc", "direction": "maximize", "reference": 0.0}
    return landscape_study("concave", suites=[suite], objectives=[objective])


def test_a_study_takes_disjoint_ranges_and_refuses_shared_documents(tasks):
    spec = study(tasks, {"stop": 4}, {"start": 4, "stop": 10})
    assert StudySpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec
    loaded = load_suites(spec)
    assert [len(suite.samples) for split in loaded.values() for suite in split] == [4, 6]
    assert loaded["search"][0].harness is loaded["report"][0].harness
    with pytest.raises(
        DataError, match=r"must not share prompts; got 1 shared, e\.g\. pick_mood:"
    ):
        load_suites(study(tasks, {"stop": 5}, {"start": 4}))
    with pytest.raises(DataError, match="must not be near-duplicates; got"):
        load_suites(study(tasks, {"stop": 6}, {"start": 6}, max_similarity=0.05))


def test_dropped_near_duplicates_are_not_asked(tasks):
    loose = {"near_duplicates": "drop", "max_similarity": 0.25}
    loaded = load_suites(study(tasks, {"stop": 6}, {"start": 6}, **loose))
    (suite,) = loaded["search"]
    assert 0 < len(suite.samples) < 6
    questions = suite.harness.asked(suite.samples, str)
    assert len(questions.instances) == 4 * len(suite.samples)


def test_worked_examples_from_the_asked_documents_are_refused(changed):
    folder = changed(PICK, fewshot_split="test")
    task = load(folder, "changed")
    with pytest.raises(DataError, match="search: worked examples must not be asked; got changed:"):
        samples(task)
    assert len(samples(load(folder, "changed", num_fewshot=0))) == 12


@pytest.mark.parametrize(
    ("name", "metrics", "changes", "words"),
    [
        (
            "pick_moot",
            ACC,
            {},
            r"no such lm_eval task; got 'pick_moot'\. Did you mean 'pick_mood'",
        ),
        (PICK, {"ac": "maximize"}, {}, r"no such metric; got 'ac'\. Did you mean 'acc'"),
        (PICK, {"acc": "minimize"}, {}, r"metrics\.acc must be the direction that the task decl"),
        (PICK, ACC, {"filter": "first"}, r"'mood': no such filter; got 'first'\. Known: none"),
        (SAY, {"exact_match": "maximize"}, {}, "must be named for a task with several; got none"),
        (BLANK, ACC, {"num_fewshot": 2}, "num_fewshot must be 0, which the task fixes; got 2"),
    ],
)
def test_what_a_task_has_not_is_refused_by_name(tasks, name, metrics, changes, words):
    with pytest.raises(ConfigError, match=words):
        load(tasks, name, metrics, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generation_kwargs": {"until": ["x"], "do_sample": True}}, "samples its answers"),
        ({"generation_kwargs": {"until": ["x"], "temperature": 0.5}}, "samples its answers"),
        ({"repeats": 3}, "asks each question several times"),
        ({"unsafe_code": True}, "runs what the model writes"),
    ],
)
def test_a_task_that_no_engine_can_do_is_refused(changed, changes, words):
    with pytest.raises(
        ConfigError, match=f"must ask texts once, greedily.*'changed', which {words}"
    ):
        load(changed(SAY, **changes), "changed", {"exact_match": "maximize"}, filter="first")


def test_a_group_is_no_task(tasks, tmp_path):
    (tmp_path / "group.yaml").write_text(
        yaml.safe_dump({"group": "moods", "task": [PICK]}), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="must be one task; got the group or tag 'moods'"):
        load(tmp_path, "moods")


@pytest.mark.parametrize("file", ["/no/such/data.jsonl", "not json"])
def test_data_that_cannot_be_loaded_are_one_error(changed, tmp_path, file):
    if file == "not json":
        (tmp_path / "broken.jsonl").write_text("{", encoding="utf-8")
        file = str(tmp_path / "broken.jsonl")
    folder = changed(PICK, dataset_kwargs={"data_files": {"train": file, "test": file}})
    words = "suite 'mood': the data of lm_eval task 'changed' cannot be loaded; got: "
    with pytest.raises(DataError, match=words) as caught:
        load(folder, "changed")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_folder_and_a_missing_harness_are_told(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such folder of task files; got /no/such/folder"):
        load("/no/such/folder")
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(
        PreflightError, match=r"needs lm-evaluation-harness; .*safemerge\[lm-eval\]"
    ):
        load(write_tasks(tmp_path / "others", count=1))


def test_a_definition_is_the_same_wherever_the_task_lies_and_another_if_it_asks_otherwise(
    tasks, tmp_path, changed
):
    first = load(tasks).definition
    assert load(tasks).definition == first
    assert load(write_tasks(tmp_path / "moved", count=12)).definition == first
    assert load(tasks, chat_template=True).definition == first, "the study's own part"
    same = load(changed(PICK), "changed").definition
    assert load(changed(PICK, description="Be kind."), "changed").definition != same
    again = load(changed(PICK, doc_to_text="Q: {{review}}"), "changed").definition
    assert again not in (same, first)


# --- code -------------------------------------------------------------------------------


@pytest.fixture
def with_function(changed, tmp_path):
    """A task whose file includes one that names a function, which leaves a trace when imported."""
    (tmp_path / "harm.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n\ndef docs(dataset):\n    return dataset\n"
    )
    folder = changed(PICK)
    (folder / "base.yaml").write_text("process_docs: !function harm.docs\n")
    with (folder / "changed.yaml").open("a") as file:
        file.write("include: base.yaml\n")
    return folder


def test_a_task_file_that_names_a_function_runs_it_only_where_the_study_allows_code(with_function):
    told = (
        r"'mood': a task file must name no Python functions .* !function harm.docs in \S+base.yaml"
    )
    with pytest.raises(ConfigError, match=told):
        load(with_function, "changed")
    assert not (with_function / "ran").exists()
    load(with_function, "changed", allow_code=True)
    assert (with_function / "ran").exists(), "the trace is one that a run leaves"


def test_a_template_of_a_task_file_reaches_none_of_pythons_objects(changed, tmp_path):
    text = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match="access to attribute '__class__' of 'str' object is uns"):
        load(changed(PICK, doc_to_text=text, num_fewshot=0), "changed")
