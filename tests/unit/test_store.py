import errno
import json
import multiprocessing
import os

import pytest

from safemerge import files
from safemerge.config.document import load_document
from safemerge.config.identity import study_identity
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import (
    ChangedRunError,
    PreflightError,
    RunFolderError,
    StudyError,
    UserError,
)
from safemerge.records import Front, TrialRecord
from safemerge.store import RunStore
from safemerge.testing.landscapes import SMOOTH, landscape_study


def record(number, **changes):
    fields = {
        "number": number,
        "role": "sampled",
        "label": f"trial {number}",
        "state": "FAIL",
        "reason": "engine died",
        "recipe": {"seed": 0},
        "candidate": f"{number:016x}",
    }
    return TrialRecord(**{**fields, **changes})


@pytest.fixture
def spec():
    return landscape_study("two-experts")


@pytest.fixture
def store(tmp_path, spec):
    return RunStore(tmp_path / "run").create(spec)


def changed(spec, **changes):
    """The study with other top-level fields, by document."""
    return type(spec).model_validate_json(json.dumps({**spec.resolved(), **changes}))


def test_a_run_begins_with_its_resolved_config_digest_and_provenance(store, spec):
    document = json.loads(store.study_path.read_text())
    assert document["config"] == spec.resolved()
    assert document["config"]["evaluator"]["max_replicas"] == 1, "defaults are filled in"
    assert len(document["digest"]) == 16
    assert document["provenance"]["python"]
    assert store.study().config == spec
    assert RunStore.open(store.folder).study() == store.study()


def test_a_folder_that_holds_a_run_is_not_created_again(store, spec):
    with pytest.raises(StudyError, match=r"already holds a run; got study\.json"):
        RunStore(store.folder).create(spec)


def test_trials_without_a_study_are_not_written_over(tmp_path, spec):
    (tmp_path / "trials.jsonl").write_text("")
    with pytest.raises(StudyError, match=r"already holds a run; got trials\.jsonl"):
        RunStore(tmp_path).create(spec)


def test_a_folder_that_holds_no_run_cannot_be_opened(tmp_path):
    assert not RunStore(tmp_path).exists
    with pytest.raises(StudyError, match=r"study\.json: no such study"):
        RunStore.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"study\.json: damaged"),
        ('{"format": 1}', r"study\.json: damaged at study; got 'Field required'"),
        ('{"format": 99}', r"study\.json: format must be 1; got 99"),
    ],
)
def test_a_damaged_or_foreign_study_is_refused(store, text, message):
    store.study_path.write_text(text)
    with pytest.raises(StudyError, match=message):
        RunStore.open(store.folder)


def test_trials_come_back_in_the_order_they_finished(store, spec):
    recipe = MergeRecipe.model_validate(spec.template(spec.spaces[0]))
    whole = record(
        2, state="COMPLETE", reason=None, result=SMOOTH.evaluate(recipe), recipe=recipe.resolved()
    )
    assert store.trials() == []
    for item in (record(3), whole, record(0)):
        store.append(item)
    assert RunStore.open(store.folder).trials() == [record(3), whole, record(0)]


def test_a_trial_is_on_disk_when_append_returns(store, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(handle) or real(handle))
    store.append(record(0))
    assert synced


def test_a_torn_last_line_is_moved_aside_and_reported(store):
    store.append(record(0))
    whole = store.trials_path.read_bytes()
    torn = record(1).model_dump_json().encode()[:-10]
    store.trials_path.write_bytes(whole + torn)
    opened = RunStore.open(store.folder)
    assert opened.torn.line == 2
    assert opened.torn.num_bytes == len(torn)
    assert opened.torn.moved_to.read_bytes() == torn + b"\n"
    assert store.trials_path.read_bytes() == whole
    assert opened.trials() == [record(0)]
    assert RunStore.open(store.folder).torn is None


def test_a_whole_last_line_that_only_lacks_its_newline_is_kept(store):
    store.append(record(0))
    store.append(record(1))
    store.trials_path.write_bytes(store.trials_path.read_bytes()[:-1])
    opened = RunStore.open(store.folder)
    assert opened.torn is None
    assert opened.trials() == [record(0), record(1)]
    opened.append(record(2))
    assert [item.number for item in opened.trials()] == [0, 1, 2]


def test_an_append_after_anothers_torn_line_does_not_glue_to_it(store):
    store.append(record(0))
    with store.trials_path.open("ab") as stream:
        stream.write(b'{"number": 1, "ro')
    store.append(record(2))
    assert store.torn.num_bytes == 17
    assert [item.number for item in store.trials()] == [0, 2]


def test_a_front_that_is_no_text_is_refused(store):
    store.front_path.write_bytes(b'{"a": "\xdf"}')
    with pytest.raises(StudyError, match=r"front\.json: damaged"):
        store.read_front()


@pytest.mark.parametrize("line", [b'{"number": 1}', b"", b"\x00\x00\x00", b"not json"])
def test_a_damaged_line_inside_is_refused_by_its_number(store, line):
    store.append(record(0))
    with store.trials_path.open("ab") as stream:
        stream.write(line + b"\n")
    store.append(record(2))
    with pytest.raises(StudyError, match=r"trials\.jsonl, line 2: damaged"):
        store.trials()


def test_a_trial_number_that_comes_twice_is_refused_by_both_lines(store):
    for number in (0, 1, 0):
        store.append(record(number))
    with pytest.raises(
        StudyError, match=r"line 3: trial numbers must be unique; got 0 again .* 1"
    ):
        store.trials()


def test_a_full_disk_is_told_and_leaves_the_trials_whole(store, monkeypatch):
    store.append(record(0))

    def full(handle, payload):
        os.write(handle, payload[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        with pytest.raises(PreflightError, match="disk is full"):
            store.append(record(1))
        with pytest.raises(PreflightError, match="disk is full"):
            store.write_recipe(1, {"seed": 0})
    store.append(record(1))
    assert [item.number for item in store.trials()] == [0, 1]


def test_a_folder_that_vanished_is_told(store):
    store.study_path.unlink()
    store.folder.rmdir()
    with pytest.raises(StudyError, match="no such folder"):
        store.append(record(0))
    with pytest.raises(StudyError, match="no such folder"):
        store.log("still here?")


def _append_many(folder, start, count, gate):
    store = RunStore(folder)
    gate.wait(timeout=60)
    for number in range(start, start + count):
        store.append(record(number, reason="x" * 5000))


def test_appends_of_several_processes_do_not_mix(store):
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)
    workers = [
        context.Process(target=_append_many, args=(store.folder, 100 * index, 15, gate))
        for index in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    numbers = [item.number for item in store.trials()]
    assert sorted(numbers) == [100 * index + step for index in range(3) for step in range(15)]


def test_the_front_is_read_back_or_absent(store):
    assert store.read_front() is None
    front = Front(study="two-experts", study_digest="d", objectives=[], points=[], knee=3)
    assert store.write_front(front) == store.front_path
    assert store.read_front() == front
    store.front_path.write_text("{}")
    with pytest.raises(StudyError, match=r"front\.json: damaged at study"):
        store.read_front()


def test_a_recipe_file_loads_as_the_same_recipe(store, spec):
    recipe = MergeRecipe.model_validate(spec.template(spec.spaces[0]))
    for trial in (3, "mean"):
        path = store.write_recipe(trial, recipe)
        assert path == store.folder / "recipes" / f"{trial}.yaml"
        assert load_document(path, MergeRecipe) == recipe
    assert load_document(store.write_recipe(4, recipe.resolved()), MergeRecipe) == recipe


def test_equal_artifacts_are_stored_once_under_their_digest(store):
    first = store.write_artifact(b"content", suffix=".json")
    assert store.write_artifact(b"content", suffix=".json") == first
    assert first.name.startswith("ed7002b439e9ac84")
    assert first.suffix == ".json"
    assert store.write_artifact(b"other").parent == first.parent
    assert len(list(first.parent.iterdir())) == 2


def test_the_log_is_a_line_with_the_time_for_each_message(store):
    store.log("trial 0 finished")
    store.log("trial 1 finished")
    first, second = store.log_path.read_text().splitlines()
    assert first.endswith(" trial 0 finished")
    assert "+00:00" in first
    assert second.endswith(" trial 1 finished")


def test_the_same_study_may_go_on_with_more_budget_and_other_replicas(store, spec):
    evaluator = {**spec.resolved()["evaluator"], "max_replicas": 4, "timeout_s": 60.0}
    store.check_same_study(spec)
    store.check_same_study(changed(spec, num_trials=500, storage="journal", evaluator=evaluator))


def _set(document, path, value):
    *parents, last = path.split("/")
    for part in parents:
        document = document[int(part) if part.isdigit() else part]
    document[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seed", 8, "seed: 7 vs 8"),
        ("name", "other", 'name: "two-experts" vs "other"'),
        ("dtype", "bfloat16", 'dtype: "base" vs "bfloat16"'),
        (
            "spaces/0/vary/method.weights.skill/high",
            0.8,
            r"spaces\.sum\.vary\.method\.weights\.skill\.high: 1\.0 vs 0\.8",
        ),
        ("spaces/0/name", "product", r'spaces: \["sum"\] vs \["product"\]'),
        ("suites/1/task/max_tokens", 64, r"suites\.harm\.task\.max_tokens: 32 vs 64"),
        ("objectives/1/reference", 0.5, r"objectives\.1\.reference: 1\.0 vs 0\.5"),
        (
            "constraints",
            [{"metric": "harm.harmful_score", "budget": 0.1}],
            r"constraints: \[\] vs",
        ),
        ("experts/0/path", "/other", r'experts\.skill\.path: "/nowhere/skill" vs "/other"'),
        ("evaluator/dtype", "float32", r'evaluator\.dtype: "auto" vs "float32"'),
        ("sampler/name", "random", r'sampler\.name: "tpe" vs "random"'),
        ("aggregates", {"all": {"mean_of": ["task.accuracy"]}}, r"aggregates\.all: \(absent\) vs"),
    ],
)
def test_another_study_is_refused_at_the_first_difference(store, spec, path, value, message):
    document = spec.resolved()
    _set(document, path, value)
    other = type(spec).model_validate_json(json.dumps(document))
    expected = (
        r"study 'two-experts': digest of the stored config differs "
        rf"\([0-9a-f]{{4}} vs [0-9a-f]{{4}}\) at {message}.*\. Use a new study name\."
    )
    with pytest.raises(StudyError, match=expected):
        store.check_same_study(other)


def _fingerprinted(spec, path, fingerprint):
    by_name = {item.name: item for item in spec.checkpoints}
    expert = by_name["skill"].model_copy(update={"path": path, "digest": fingerprint})
    return spec.with_checkpoints({**by_name, "skill": expert})


def _edited(store, change):
    document = json.loads(store.study_path.read_text())
    change(document["config"])
    store.study_path.write_text(json.dumps(document))
    return RunStore.open(store.folder)


def test_a_run_from_before_a_key_existed_resumes_at_its_default(store, spec):
    """What a version that knows fewer keys would have stored."""

    def without(config):
        for key in ("references", "vocabulary", "judge_service", "aggregates", "trained"):
            del config[key]
        del config["sampler"]["name"], config["evaluator"]["max_model_len"]
        for suite in config["suites"]:
            suite["search"].pop("offset", None)

    old = _edited(store, without)
    old.check_same_study(spec)
    with pytest.raises(ChangedRunError, match="at references: true vs false"):
        old.check_same_study(spec.model_copy(update={"references": False}))


def test_a_run_with_a_key_of_another_version_is_refused_with_its_name(store):
    def with_more(config):
        config["sampler"]["warmth"] = 3

    with pytest.raises(UserError, match=r"study\.json: .*got 'config\.sampler\.warmth'.*another"):
        _edited(store, with_more)


def test_a_moved_checkpoint_with_the_same_fingerprint_is_the_same_study(tmp_path, spec):
    store = RunStore(tmp_path / "run").create(_fingerprinted(spec, "/a", "f1"))
    store.check_same_study(_fingerprinted(spec, "/b", "f1"))
    with pytest.raises(StudyError, match=r'experts\.skill\.digest: "f1" vs "f2"'):
        store.check_same_study(_fingerprinted(spec, "/a", "f2"))


def test_a_checkpoint_without_fingerprint_is_compared_by_reference(tmp_path, spec):
    store = RunStore(tmp_path / "run").create(_fingerprinted(spec, "/nowhere/skill", "f1"))
    store.check_same_study(spec)


def _started(spec, weight, *, name="a", file="/found/recipe.yaml"):
    recipe = spec.template(spec.spaces[0])
    recipe["method"]["weights"]["skill"] = weight
    document = spec.resolved()
    document["start"] = [file]
    document["started"] = [{"name": name, "recipe": recipe, "num_layers": 2}]
    return type(spec).model_validate_json(json.dumps(document))


def test_a_warm_start_is_part_of_the_study_by_what_it_is_and_not_by_its_file(tmp_path, spec):
    store = RunStore(tmp_path / "run").create(_started(spec, 0.25))
    store.check_same_study(_started(spec, 0.25, file="/moved.yaml"))
    with pytest.raises(StudyError, match=r'at start\.a: "[0-9a-f]+" vs "[0-9a-f]+"'):
        store.check_same_study(_started(spec, 0.5))
    with pytest.raises(StudyError, match=r"at start: .* vs \(absent\)"):
        store.check_same_study(spec)
    assert RunStore(tmp_path / "run").study().config.started[0].recipe.method.weights == {
        "skill": 0.25,
        "safety": 0.5,
    }


def test_a_study_without_warm_starts_is_the_study_it_was_before_there_were_any(spec):
    identity = study_identity(spec)
    assert not {"start", "started"} & set(identity)


def test_files_of_a_run_that_are_nested_too_deeply_are_damaged_and_no_traceback(tmp_path):
    deep = "[" * 200_000
    store = RunStore(tmp_path / "run").create(landscape_study("toy", num_trials=3), rows={})
    store.asked_path.write_text(deep)
    assert store.asked() is None, "it only helps to name"
    store.study_path.write_text(deep)
    with pytest.raises(RunFolderError, match=r"study.json: damaged; got"):
        store.study()
