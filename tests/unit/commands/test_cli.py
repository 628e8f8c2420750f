import argparse
import re
import signal
from importlib import metadata

import pytest

from safemerge import __version__, errors
from safemerge.cli import build_parser, main
from safemerge.config.program import PROGRAMS, load_attribute

CONTRACT = (
    "search", "evaluate", "merge", "align", "finetune", "generate", "report", "export", "serve",
    "validate", "schema", "optimize",
)  # fmt: skip
"""Commands that scripts rely on (design/architecture.md)."""

OPTIONS = {
    "search": [
        "study", "--results", "--start", "--resume", "--new-data", "--accept-trials",
        "--serve-report", "--plain", "--dry-run",
    ],
    "attribute": ["run", "--pick", "--only", "--dry-run", "--json"],
    "evaluate": ["study", "--recipe", "--model", "--split", "--json"],
    "merge": ["recipe", "out", "--mergekit", "--adapter", "--rank"],
    "methods": ["name", "--json"],
    "statistics": ["file"],
    "align": ["spec", "--results", "--resume", "--restart"],
    "finetune": ["spec", "--results", "--resume", "--restart"],
    "generate": ["spec", "--results", "--resume"],
    "optimize": ["spec", "--results", "--resume"],
    "robustness": ["spec", "--results", "--resume", "--seeds", "--dry-run"],
    "report": ["run", "--as-stored", "--accept-trials"],
    "export": [
        "run", "--pick", "out", "--recipe", "--mergekit", "--adapter", "--rank",
        "--modules-to-save", "--push", "--yes", "--as-stored",
    ],
    "compare": ["runs", "--json", "--output"],
    "status": ["run", "--results", "--json"],
    "serve": ["study"],
    "validate": ["files"],
    "schema": ["name"],
    "completion": ["shell"],
    "data": ["action", "names"],
    "plan": [
        "--share", "--difference", "--prompts", "--discordance", "--alpha", "--power",
        "--comparisons",
    ],
    "judge": [
        "file", "--text", "--label", "--prompt", "--by", "--positive", "--claim", "--judge",
        "--json",
    ],
    "init": ["--base", "--expert", "--aligned", "--suite", "--judge", "--out", "--force"],
    "demo": ["--results", "--fresh"],
}  # fmt: skip
"""Every option of every command: a new one is added here on purpose, or not at all."""


LOUDNESS = {"-q", "--quiet", "-v", "--verbose"}
"""Every command has these."""


def commands():
    (choices,) = (
        action.choices
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return choices


def options(parser):
    return [
        name
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        for name in (action.option_strings or [action.dest])
        if name not in LOUDNESS
    ]


@pytest.mark.parametrize("name", CONTRACT)
def test_help_lists_every_command_of_the_contract(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert f"\n    {name} " in capsys.readouterr().out


def test_no_command_has_an_option_that_is_not_frozen_here():
    assert {name: options(parser) for name, parser in commands().items()} == OPTIONS
    assert options(build_parser()) == ["--version", "--debug"]


def test_every_command_has_a_module_that_runs_it():
    for name in commands():
        program = PROGRAMS.get(name)
        run = program.run if program else f"safemerge.commands.{name}:run"
        assert callable(load_attribute(run))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_commands_help_says_what_it_does(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: safemerge {name}" in text
    assert all(option in text for option in OPTIONS[name] if option.startswith("--"))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_argument_of_every_command_is_explained(name):
    assert [action.dest for action in commands()[name]._actions if not action.help] == []


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    first, python, packages = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"safemerge {re.escape(__version__)}( \([0-9a-f]{{12}}(-dirty)?\))?", first
    )
    assert python.startswith("Python 3.")
    assert f"torch {metadata.version('torch')}, " in packages


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["serch"], "invalid choice: 'serch'. Did you mean 'search'?"),
        (["search"], "the following arguments are required: STUDY.yaml"),
        (["search", "s.yaml", "--resum", "--x"], "unrecognized arguments: --x"),
        (["search", "s.yaml", "--dry-rnu"], "arguments: --dry-rnu. Did you mean '--dry-run'?"),
        (["plan", "--alpah=0.1"], "arguments: --alpah=0.1. Did you mean '--alpha'?"),
        (["search", "s.yaml", "t.yaml"], "unrecognized arguments: t.yaml.\n"),
        (["evaluate", "s.yaml"], "one of the arguments --recipe --model is required"),
        (["evaluate", "s.yaml", "--recipe", "r", "--model", "m"], "not allowed with argument"),
        (["export", "run", "out"], "required: --pick"),
        (["schema", "studdy"], "invalid choice: 'studdy'. Did you mean 'study'?"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.fixture
def command(monkeypatch):
    """Let `validate` raise something; returns what it was called with."""
    from safemerge.commands import validate

    def command(raised=None):
        calls = []

        def run(options):
            calls.append(options)
            if raised is not None:
                raise raised

        monkeypatch.setattr(validate, "run", run)
        return calls

    return command


def test_done_is_0_and_the_command_gets_its_options(command, capsys):
    calls = command()
    assert main(["validate", "a.yaml", "b.yaml"]) == 0
    assert calls[0].files == ["a.yaml", "b.yaml"]
    assert capsys.readouterr() == ("", "")


FAILURES = [
    (errors.UserError, 2),
    (errors.ConfigError, 2),
    (errors.DataError, 2),
    (errors.CheckpointError, 2),
    (errors.CheckpointMismatchError, 2),
    (errors.CheckpointChangedError, 2),
    (errors.RunFolderError, 2),
    (errors.PreflightError, 2),
    (errors.ChangedRunError, 2),
    (errors.SafemergeError, 1),
    (errors.MergeError, 1),
    (errors.EngineError, 1),
    (errors.NoReplicaError, 1),
    (errors.ScoringError, 1),
    (errors.StudyError, 1),
    (errors.TrainingError, 1),
    (errors.ObjectStoreError, 1),
]


@pytest.mark.parametrize(("kind", "code"), FAILURES)
def test_errors_end_with_their_code_and_one_message_without_a_traceback(
    kind, code, command, capsys
):
    command(kind("f.yaml: seed: must be at least 0; got -1."))
    assert main(["validate", "f.yaml"]) == code
    assert capsys.readouterr() == ("", "safemerge: f.yaml: seed: must be at least 0; got -1.\n")


@pytest.mark.parametrize(("kind", "code"), FAILURES)
def test_debug_shows_the_traceback(kind, code, command, capsys):
    command(kind("where: what"))
    with pytest.raises(kind, match="where: what"):
        main(["--debug", "validate", "f.yaml"])
    assert capsys.readouterr() == ("", "")


def test_every_error_class_has_its_code_here():
    family = {errors.SafemergeError}
    while True:
        more = family | {sub for kind in family for sub in kind.__subclasses__()}
        if more == family:
            break
        family = more
    assert {kind for kind in family if kind.__module__ == errors.__name__} == {
        kind for kind, _ in FAILURES
    }


def test_an_interrupt_is_130_and_says_that_work_is_kept(command, capsys):
    command(KeyboardInterrupt())
    assert main(["validate", "f.yaml"]) == 130
    assert "safemerge: interrupted; what was finished is kept." in capsys.readouterr().err


def test_sigterm_is_an_interrupt_of_its_own_code_and_only_while_a_command_runs(
    monkeypatch, capsys
):
    kept = []

    def work(_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            kept.append("what was finished")
            raise

    monkeypatch.setattr("safemerge.commands.validate.run", work)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["validate", "f.yaml"]) == 143
    assert kept == ["what was finished"]
    told = capsys.readouterr().err
    assert told == "\nsafemerge: ended by SIGTERM; what was finished is kept.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_that_nobody_expected_keeps_its_traceback(command):
    command(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["validate", "f.yaml"])
