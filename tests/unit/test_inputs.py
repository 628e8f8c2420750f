import json
import subprocess
import sys

import pytest

from safemerge.config.document import parse_document
from safemerge.config.study import StudySpec
from safemerge.errors import ChangedRunError, UserError
from safemerge.inputs import check_texts, file_inputs, text_digests
from safemerge.store import RunStore
from safemerge.testing.landscapes import landscape_study


def rows(folder, name, count=4):
    lines = [json.dumps({"prompt": f"{name} {index}", "answer": "yes"}) for index in range(count)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path):
    """A folder with data, and with models of which only what counts as text exists."""
    for name in ("search", "report", "shots", "rung"):
        rows(tmp_path, name)
    for model in ("base", "one", "guard"):
        (tmp_path / model).mkdir()
        settings = {"chat_template": f"{model}: {{{{ x }}}}", "model_max_length": 64}
        (tmp_path / model / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / model / "tokenizer.json").write_text('{"vocab": {"a": 0}}')
        generation = {"eos_token_id": [1, 2], "transformers_version": "5.0"}
        (tmp_path / model / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.yaml").write_text("task: own\n")
    return tmp_path


def study_at(folder):
    def asked(name):
        return {"source": {"kind": "file", "path": f"{name}.jsonl"}, "label": "answer"}

    yes_no = {
        "name": "q",
        "task": {"kind": "classification", "labels": ["yes", "no"]},
        "search": asked("search"),
        "report": asked("report"),
        "few_shot": {"source": {"kind": "file", "path": "shots.jsonl"}},
    }
    guard = {"kind": "guard", "name": "guard", "path": "guard", "family": "llama_guard"}
    harm = {
        "name": "h",
        "task": {"kind": "harm", "judge": guard, "same_judge": True},
        "search": {"source": {"kind": "package", "name": "do-not-answer", "stop": 5}},
        "report": {"source": {"kind": "package", "name": "do-not-answer", "start": 5}},
    }
    own = {
        "name": "t",
        "lm_eval": {"task": "own", "metrics": {"acc": "maximize"}, "include_path": "tasks"},
        "search": {"source": {"kind": "lm_eval", "stop": 4}},
        "report": {"source": {"kind": "lm_eval", "start": 4}},
    }
    rung = {"sets": {"skill": [{**asked("rung"), "response": "{answer}"}]}}
    space = {
        "name": "ta",
        "method": {"name": "task_arithmetic", "weights": {"one": 0.5}},
        "vary": {"method.weights.one": {"low": 0.0, "high": 1.0}},
    }
    document = {
        "name": "p",
        "base": {"name": "base", "path": "base"},
        "experts": [{"name": "one", "path": "one"}],
        "spaces": [space],
        "suites": [yes_no, harm, own],
        "rung": rung,
        "objectives": [{"metric": "q.accuracy", "direction": "maximize", "reference": 0.0}],
        "num_trials": 2,
    }
    return parse_document(document, StudySpec, where="study").located(folder)


def edit(path, **changes):
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


def test_every_file_that_decides_what_is_asked_has_a_digest(folder):
    found = file_inputs(study_at(folder))
    assert sorted(found.files) == [
        "rung.skill.0",
        "suites.q.report",
        "suites.q.search",
        "suites.q.search.few_shot",
        "suites.t.task",
    ]
    parts = ("chat_template", "generation_config", "tokenizer")
    models = ("base", "judges.guard", "one")
    assert sorted(found.models) == [f"{name}.{part}" for name in models for part in parts]
    assert file_inputs(study_at(folder)) == found


CHANGES = {
    "another data file (suites.q.search)": lambda at: rows(at, "search", 5),
    "another data file (suites.q.report)": lambda at: rows(at, "report", 5),
    "another data file (suites.q.search.few_shot)": lambda at: rows(at, "shots", 5),
    "another data file (rung.skill.0)": lambda at: rows(at, "rung", 5),
    "another data file (suites.t.task)": lambda at: (at / "tasks/own.yaml").write_text("task: t"),
    "another chat template (base)": lambda at: edit(
        at / "base/tokenizer_config.json", chat_template="other"
    ),
    "another chat template (one)": lambda at: (at / "one/chat_template.jinja").write_text("x"),
    "another chat template (judges.guard)": lambda at: edit(
        at / "guard/tokenizer_config.json", chat_template="other"
    ),
    "no chat template (base)": lambda at: (at / "base/tokenizer_config.json").write_text(
        '{"model_max_length": 64}'
    ),
    "another tokenizer (base)": lambda at: edit(at / "base/tokenizer.json", vocab={"b": 0}),
    "another tokenizer (one)": lambda at: edit(
        at / "one/tokenizer_config.json", add_bos_token=True
    ),
    "another tokenizer (judges.guard)": lambda at: (at / "guard/tokenizer.model").write_text("x"),
    "another generation_config.json (base)": lambda at: edit(
        at / "base/generation_config.json", eos_token_id=3
    ),
    "another generation_config.json (one)": lambda at: edit(
        at / "one/generation_config.json", temperature=0.5
    ),
    "no generation_config.json (one)": lambda at: (at / "one/generation_config.json").unlink(),
}


@pytest.mark.parametrize("told", CHANGES)
def test_a_run_is_not_continued_with_other_inputs_and_the_message_names_them(folder, told):
    store = RunStore(folder / "run").create(study_at(folder))
    store.check_same_study(study_at(folder))
    CHANGES[told](folder)
    with pytest.raises(ChangedRunError) as caught:
        store.check_same_study(study_at(folder))
    assert isinstance(caught.value, UserError)
    assert str(caught.value) == (
        f"study 'p': inputs must be the run's; got {told}. Put back what changed, or take "
        "--new-data (the run so far is kept beside) or a new study name."
    )


def test_everything_that_changed_is_named_at_once(folder):
    store = RunStore(folder / "run").create(study_at(folder))
    rows(folder, "search", 9)
    edit(folder / "base/generation_config.json", eos_token_id=3)
    with pytest.raises(ChangedRunError, match=r"q\.search\), another generation_config\.json"):
        store.check_same_study(study_at(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda at: edit(at / "base/generation_config.json", transformers_version="6.0"),
        lambda at: edit(at / "base/tokenizer_config.json", name_or_path="elsewhere"),
        lambda at: (at / "base/README.md").write_text("new"),
        lambda at: (at / "base/generation_config.json").write_text(
            '{\n  "transformers_version": "5.0",\n  "eos_token_id": [1, 2]\n}'
        ),
        lambda at: (at / "base").rename(at / "elsewhere"),
        lambda at: (at / "search.jsonl").unlink(),
    ],
    ids=["version", "origin", "readme", "layout", "model gone", "data gone"],
)
def test_what_has_no_meaning_or_is_gone_is_no_change(folder, change):
    store = RunStore(folder / "run").create(study_at(folder))
    change(folder)
    store.check_same_study(study_at(folder))


def test_a_template_counts_as_what_is_used_whichever_file_holds_it(folder):
    base = folder / "base"
    before = text_digests(base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "chat_template.jinja").write_text(settings.pop("chat_template"))
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    assert text_digests(base) == before
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tools.jinja").write_text("x")
    assert text_digests(base)["chat_template"] != before["chat_template"]


@pytest.mark.parametrize("text", ["[1]", "not json", "[" * 100_000, "\x00"])
def test_settings_that_are_no_object_count_by_their_bytes(folder, text):
    before = text_digests(folder / "base")
    (folder / "base/generation_config.json").write_text(text)
    found = text_digests(folder / "base")
    assert found["generation_config"] not in ("absent", before["generation_config"])


def test_a_run_of_an_earlier_version_is_read_and_not_continued(tmp_path):
    spec = landscape_study("old")
    store = RunStore(tmp_path / "old").create(spec)
    document = json.loads(store.study_path.read_text())
    del document["inputs"]
    store.study_path.write_text(json.dumps(document))
    opened = RunStore.open(store.folder)
    assert opened.study().config == spec
    assert opened.trials() == []
    with pytest.raises(ChangedRunError, match=r"which did not record it.*need --new-data"):
        opened.check_same_study(spec)


def test_another_version_of_scoring_is_another_run(tmp_path, monkeypatch):
    spec = landscape_study("scored")
    store = RunStore(tmp_path / "run").create(spec)
    monkeypatch.setattr("safemerge.inputs.SCORING_VERSION", 99)
    with pytest.raises(ChangedRunError, match=r"another version of scoring \(99 for \d+\)"):
        store.check_same_study(spec)


def test_inputs_are_part_of_the_digest_that_a_front_carries(folder):
    first = RunStore(folder / "one-run").create(study_at(folder)).study().digest
    rows(folder, "search", 9)
    assert RunStore(folder / "two-run").create(study_at(folder)).study().digest != first


def test_a_process_that_starts_later_refuses_models_with_other_texts(folder):
    spec = study_at(folder)
    check_texts(spec)
    resolved = spec.model_copy(update={"inputs": file_inputs(spec)})
    check_texts(resolved)
    rows(folder, "search", 9)
    check_texts(resolved)
    edit(folder / "base/generation_config.json", eos_token_id=3)
    check_texts(spec)
    with pytest.raises(ChangedRunError, match=r"got another generation_config\.json \(base\)"):
        check_texts(resolved)


def test_a_run_set_aside_loses_nothing(folder):
    store = RunStore(folder / "run").create(study_at(folder))
    before = store.study_path.read_bytes()
    kept = store.set_aside()
    assert (kept, store.exists) == (folder / "run.old-1", False)
    assert RunStore(kept).study_path.read_bytes() == before
    rows(folder, "search", 9)
    store.create(study_at(folder))
    assert store.set_aside() == folder / "run.old-2"


def test_inputs_are_digested_without_anything_heavy():
    script = (
        "import sys, safemerge.inputs\n"
        "heavy = {'torch', 'transformers', 'datasets', 'ray', 'vllm', 'lm_eval'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
