"""`safemerge init`: from models to a study that is sound."""

import io
import json
import shutil
from pathlib import Path

import pytest

from safemerge.api.declared import load_study
from safemerge.cli import main
from safemerge.commands import init
from safemerge.data import rows
from safemerge.testing.pico import change_config, pico_with_tokens


@pytest.fixture
def start(tmp_path, monkeypatch, tiny_base, tiny_expert):
    """Run `init` in an empty folder with a base, an expert and more; returns the study."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def start(*arguments, code=0):
        models = ["--base", str(tiny_base), "--expert", f"math={tiny_expert}"]
        assert main(["init", *models, "--out", "mine.yaml", *map(str, arguments)]) == code
        return load_study("mine.yaml").spec if code == 0 else None

    return start


def test_the_study_is_sound_and_a_dry_run_takes_it(start, monkeypatch, tiny_aligned, capsys):
    prompts = [{"prompt": f"How does number {n * 7919} of {n}x{n} work?"} for n in range(120)]
    monkeypatch.setattr(rows, "packaged_rows", lambda *_, **__: prompts)
    study = start("--aligned", tiny_aligned, "--suite", "strongreject")
    assert [ref.name for ref in study.experts] == ["aligned", "math"]
    assert [space.method.name for space in study.spaces] == ["task_arithmetic", "ties"]
    assert all(space.vary["method.weights.aligned"].low == 0.2 for space in study.spaces)
    assert [item.metric for item in study.objectives] == ["strongreject.harmful_score"]
    file = Path("mine.yaml")
    text = file.read_text()
    assert text.count("#") >= 5
    assert main(["validate", "mine.yaml"]) == 0
    # The pico model's context is shorter than the suite's answers.
    own = "use: strongreject\n    max_similarity: null\n    task: {max_tokens: 64} "
    file.write_text(text.replace("use: strongreject ", own))
    assert main(["search", "mine.yaml", "--dry-run"]) == 0
    assert "dry run: the study is sound" in capsys.readouterr().out


def test_metrics_of_all_suites_have_their_part(start, tiny_adapter):
    suites = [part for name in ("gsm8k", "sst2", "strongreject", "harmbench", "xstest")
              for part in ("--suite", name)]  # fmt: skip
    judge = ["--judge", "meta-llama/Llama-Guard-3-8B"]
    study = start("--expert", f"code={tiny_adapter}", *suites, *judge)
    assert study.aggregates["skill"].mean_of == ["gsm8k.accuracy", "sst2.accuracy"]
    assert [(item.metric, item.reference) for item in study.objectives] == [
        ("skill", 0.25), ("harm", 1.0)
    ]  # fmt: skip
    assert [item.metric for item in study.constraints] == ["xstest.over_refusal_rate"]
    harm = next(suite.task for suite in study.suites if suite.name == "harmbench")
    (guard,) = harm.report_judges
    assert (guard.family, guard.hub) == ("llama_guard", "meta-llama/Llama-Guard-3-8B")
    assert harm.judge.kind == "refusal_proxy"


def test_tokenizers_that_differ_are_matched_by_token(start, tiny_expert, tmp_path):
    other = pico_with_tokens(tiny_expert, tmp_path / "more", ["<extra>"], seed=5)
    assert start("--suite", "strongreject").vocabulary == "refuse"
    found = start("--force", "--expert", f"more={other}", "--suite", "strongreject")
    assert found.vocabulary in ("base", "union")


def test_an_experts_chat_template_is_taken_where_the_base_has_none(
    start, tiny_base, tiny_expert, tmp_path
):
    plain = shutil.copytree(tiny_base, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    for file in plain.glob("tokenizer_config.json"):
        settings = json.loads(file.read_text())
        settings.pop("chat_template", None)
        file.write_text(json.dumps(settings))
    found = start("--base", plain, "--suite", "strongreject")
    assert found.tokenizer.chat_template == "math"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "gsmk"], "--suite: no such ready-made suite; got 'gsmk'. Did you mean 'gsm"),
        (["--expert", "./nowhere"], "--expert: must be a folder, or a hub id ORG/NAME; got './no"),
        (["--expert", "a/b", "--expert", "b=c/d", "--expert", "b=e/f"], "names must be unique"),
        (["--expert", "two words=a/b"], "a name has letters, digits, '-' and '_'; got 'two wo"),
        (["--judge", "org/model"], "--judge: must say the guard's family; got 'org/model'."),
    ],
)
def test_wrong_answers_end_in_one_message_and_no_file(arguments, words, start, capsys, tmp_path):
    start(*arguments, code=2)
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_by_force(start, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("mine")
    start(code=2)
    assert "mine.yaml: exists already." in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_models_of_another_architecture_are_refused(start, tmp_path, tiny_expert, capsys):
    other = shutil.copytree(tiny_expert, tmp_path / "other")
    change_config(other, rms_norm_eps=1e-6, num_attention_heads=1, num_key_value_heads=1)
    start("--expert", f"other={other}", code=2)
    assert "experts must share the base architecture" in capsys.readouterr().err
    assert not (tmp_path / "mine.yaml").exists()


def test_models_that_are_not_here_are_said_to_be_unchecked(start, capsys):
    found = start("--expert", "far=some-org/some-model", "--suite", "strongreject")
    assert found.experts[1].hub == "some-org/some-model"
    assert "not checked, for the hub's cache lacks them: far." in capsys.readouterr().out


def test_questions_are_asked_on_a_terminal(monkeypatch, tmp_path, tiny_base, tiny_expert):
    answers = [tiny_base, f"math={tiny_expert}", "", "", "strongreject", ""]

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init.sys, "stdin", Terminal("".join(f"{line}\n" for line in answers)))
    assert main(["init"]) == 0
    study = load_study("study.yaml").spec
    assert [suite.name for suite in study.suites] == ["strongreject"]
    assert [ref.name for ref in study.experts] == ["math"]


def test_without_a_terminal_the_flags_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init.sys, "stdin", io.StringIO(""))
    assert main(["init", "--base", "org/model"]) == 2
    assert "got no --expert or --aligned. Example: safemerge init" in capsys.readouterr().err
