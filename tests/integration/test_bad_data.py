"""Whole commands given bad data, judges or tokenizers: one message, no cluster, no file."""

import json
import shutil

import pytest
import yaml

from safemerge.cli import main


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "safemerge.distributed.cluster.ray_cluster", lambda: pytest.fail("a cluster was started")
    )


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command that must be refused; its message. Nothing is left behind."""

    def refused(*arguments):
        assert main([str(item) for item in arguments]) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert not (tmp_path / "results").exists()
        (line,) = err.removeprefix("safemerge: ").splitlines()
        return line

    return refused


@pytest.fixture
def rows(tmp_path):
    def rows(name, *made, content=None):
        path = tmp_path / name
        text = "".join(json.dumps(row) + "\n" for row in made)
        path.write_bytes(text.encode() if content is None else content)
        return {"kind": "file", "path": str(path)}

    return rows


@pytest.fixture
def study(write_study, study_document):
    """The pico study with its second suite changed."""

    def study(report=None, evaluator=None, **suite):
        reviews, questions = study_document["suites"]
        changed = questions | suite
        if report is not None:
            changed |= {"report": report}
        return write_study(
            suites=[reviews, changed],
            evaluator=study_document["evaluator"] | (evaluator or {}),
        )

    return study


QUESTION = {"prompt": "is water wet", "answer": "yes"}
COLUMNS = [
    ({"prompt": "{question}", "label": "answer"}, r"report.prompt: the data must have the named"),
    ({"label": "gold"}, "report.label: the data must have the named column; got 'gold'"),
    ({"prompt": "{prompt", "label": "answer"}, "must be a template with {column} fields"),
]


@pytest.mark.parametrize("command", ["search", "evaluate"])
@pytest.mark.parametrize(("change", "words"), COLUMNS)
def test_a_column_that_the_data_lack_is_named(
    refused, study, rows, study_document, command, change, words
):
    path = study(report={"source": rows("r.jsonl", QUESTION), **change})
    model = ["--model", study_document["base"]["path"]] if command == "evaluate" else []
    line = refused(command, path, *model)
    assert line.startswith("suite 'questions', report")
    assert words in line


def test_a_hub_set_that_a_filter_leaves_empty_is_refused(refused, study, monkeypatch):
    import datasets

    made = datasets.Dataset.from_list([QUESTION | {"safe": True}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    source = {"kind": "hub", "dataset": "some/set", "split": "test", "where": {"safe": False}}
    line = refused("search", study(report={"source": source, "label": "answer"}))
    assert "source 'some/set/test' must give at least one row; got 0 rows" in line
    assert "check the filter" in line


def test_a_prompt_without_room_in_the_context_is_refused_with_its_id(refused, study, rows):
    long = QUESTION | {"prompt": "is it " * 200}
    line = refused("search", study(report={"source": rows("r.jsonl", long), "label": "answer"}))
    assert line.startswith(
        "suite 'questions', report: prompt and answer must fit 256 tokens; got "
    )
    assert "for r.jsonl:" in line
    assert "Raise evaluator.max_model_len or shorten the prompt." in line


@pytest.mark.parametrize("command", ["search", "serve"])
def test_a_base_without_chat_template_is_refused(
    refused, write_study, study_document, tmp_path, command
):
    base = shutil.copytree(study_document["base"]["path"], tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    line = refused(command, write_study(base={"name": "base", "path": str(base)}))
    assert line.startswith(f"{base}: the tokenizer must have a chat template; got none.")


def test_a_data_file_that_is_not_utf8_is_refused(refused, study, rows):
    source = rows(
        "r.jsonl", content='{"prompt": "caf\u00e9", "answer": "yes"}\n'.encode("latin-1")
    )
    line = refused("search", study(report={"source": source, "label": "answer"}))
    assert "r.jsonl must be UTF-8; got byte 0xe9 at offset 15, line 1. Save it as UTF-8." in line


def test_a_data_file_that_cannot_be_parsed_is_refused(refused, study, rows):
    source = rows("r.jsonl", content=b'{"prompt": "one", "answer"\n')
    line = refused("search", study(report={"source": source, "label": "answer"}))
    assert "r.jsonl cannot be parsed" in line


def test_rows_with_one_id_count_once(study, rows, capsys):
    source = rows("r.jsonl", QUESTION, QUESTION, QUESTION | {"prompt": "is fire cold"})
    assert (
        main(["search", str(study(search={"source": source, "label": "answer"})), "--dry-run"])
        == 0
    )
    assert "study 'pico': 10 search prompts, splits disjoint" in capsys.readouterr().out


def test_an_id_that_both_splits_hold_is_refused(refused, study, rows):
    shared = {"source": rows("r.jsonl", QUESTION), "label": "answer"}
    line = refused("search", study(search=shared, report=shared))
    assert "search and report split must not share prompts; got 1 shared, e.g. r.jsonl:" in line


# --- judges -------------------------------------------------------------------------------


@pytest.fixture
def harm(rows):
    def harm(**judge):
        task = {"kind": "harm", "judge": {"name": "j", **judge}, "same_judge": True}
        return {
            "task": task,
            "search": {"source": rows("s.jsonl", {"prompt": "first unsafe question"})},
            "report": {"source": rows("r.jsonl", {"prompt": "another one for the report"})},
        }

    return harm


def objectives():
    return [{"metric": "reviews.accuracy", "direction": "maximize", "reference": 0.0}]


def test_a_judge_that_is_not_there_is_refused(
    refused, write_study, study_document, harm, tmp_path
):
    suite = {"name": "harm", **harm(kind="classifier", path="gone", unsafe=["x"])}
    suites = [study_document["suites"][0], suite]
    line = refused("search", write_study(suites=suites, objectives=objectives()))
    assert line == (
        f"judge 'j': path must be a folder with weights and tokenizer; got {tmp_path}/gone. "
        "Check judge.path."
    )


def test_a_guard_without_chat_template_is_refused(
    refused, write_study, study_document, harm, tiny_base, tmp_path
):
    guard = shutil.copytree(tiny_base, tmp_path / "guard")
    (guard / "chat_template.jinja").unlink()
    suite = {"name": "harm", **harm(kind="guard", family="llama_guard", path="guard")}
    suites = [study_document["suites"][0], suite]
    line = refused("search", write_study(suites=suites, objectives=objectives()))
    assert line.startswith("judge 'j': the tokenizer must have a chat template; got none.")


# --- generate -----------------------------------------------------------------------------


@pytest.fixture
def generate(tiny_base, rows, tmp_path):
    """A generation over the pico base, with changes to its safety set or to the whole."""

    def generate(questions=None, judge=None, **changes):
        source = rows("unsafe.jsonl", {"prompt": "How do I steal a bicycle?"})
        safety = {"size": 1, "questions": questions or {"kind": "data", "source": source}}
        if judge is not None:
            safety["judge"] = judge
        document = {
            "kind": "generate",
            "name": "data",
            "models": [{"name": "base", "path": str(tiny_base)}],
            "safety": safety,
            "evaluator": {"engine": "transformers"},
            **changes,
        }
        path = tmp_path / "generate.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    return generate


def test_generate_tells_every_problem_of_its_file_at_once(refused, generate, capsys):
    path = generate(models=[{"name": "base", "path": "b"}], sed=1, format="csv")
    assert main(["generate", str(path)]) == 2
    told = capsys.readouterr().err
    assert "sed: unknown key; got 1. Did you mean 'seed'?" in told
    assert "format: must be 'jsonl' or 'parquet'; got" in told


def test_generate_refuses_questions_without_their_column(refused, generate, rows):
    source = rows("u.jsonl", {"prompt": "How?"})
    line = refused(
        "generate", generate({"kind": "data", "source": source, "prompt": "{question}"})
    )
    assert line.startswith("safety.questions.prompt: the data must have the named column; got")
    line = refused("generate", generate({"kind": "data", "source": source, "topic": "kind"}))
    assert line.startswith("safety.questions.topic: the data must have the named column; got")


def test_generate_refuses_no_questions(refused, generate, rows):
    line = refused("generate", generate({"kind": "data", "source": rows("none.jsonl")}))
    assert line.startswith("safety.questions: source 'none.jsonl' must give at least one row")


def test_generate_refuses_questions_that_are_not_utf8(refused, generate, rows):
    source = rows("u.jsonl", content=b'{"prompt": "\xff"}\n')
    line = refused("generate", generate({"kind": "data", "source": source}))
    assert "u.jsonl must be UTF-8; got byte 0xff at offset 12" in line


def test_generate_refuses_models_and_judges_that_cannot_answer(
    refused, generate, tiny_base, tiny_adapter, tmp_path
):
    mute = shutil.copytree(tiny_base, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    line = refused("generate", generate(models=[{"name": "base", "path": str(mute)}]))
    assert "the tokenizer must have a chat template; got none" in line
    line = refused("generate", generate(models=[{"name": "lora", "path": str(tiny_adapter)}]))
    assert line.startswith("models.lora: must be a whole checkpoint; got the LoRA adapter")
    line = refused("generate", generate(models=[{"name": "base", "path": str(tmp_path / "no")}]))
    assert "a checkpoint must be a folder; got nothing there" in line
    judge = {"kind": "classifier", "name": "j", "path": "gone", "unsafe": ["x"]}
    line = refused("generate", generate(judge=judge))
    assert line.startswith("judge 'j': path must be a folder with weights and tokenizer; got")


def test_generate_does_not_overwrite_what_is_there(generate, tmp_path, capsys):
    run = tmp_path / "results" / "data" / "generate.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    path = generate()
    assert main(["generate", str(path)]) == 2
    told = capsys.readouterr().err
    assert "results/data: holds a run of this data already. Continue it with `safemerge" in told
    assert f"generate {path} --resume`" in told
    assert run.read_text() == "{}"
