"""The scripts that complete commands and options name all of them, and a shell runs them."""

import subprocess
import sys

import pytest

from safemerge.cli import build_parser, main

SHELLS = ("bash", "zsh", "tcsh")


def test_a_missing_package_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "safemerge: completion: needs the package shtab; got none. "
        "Install safemerge[completion].\n"
    )


@pytest.fixture
def script(request, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", request.param]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SHELLS, indirect=True, ids=SHELLS)
def test_a_script_names_every_command_and_every_option(script, request):
    (commands,) = (item for item in build_parser()._actions if isinstance(item.choices, dict))
    missing = [name for name in commands.choices if name not in script]
    tcsh = request.node.callspec.params["script"] == "tcsh"
    for parser in (build_parser(), *commands.choices.values()):
        for name in parser._option_string_actions:
            # tcsh is told of a long option without its hyphens, and of no short one.
            wanted = name.removeprefix("--") if tcsh else name
            missing += [name] if wanted not in script and not (tcsh and len(name) == 2) else []
    assert missing == []


@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sea"], ["search"]),
        (["search", "--serve"], ["--serve-report"]),
        (["completion", "z"], ["zsh"]),
        (["validate", "st"], ["studies", "study.yaml"]),
        (["report", "st"], ["studies"]),
    ],
    ids=["command", "option", "choice", "file", "folder"],
)
def test_bash_completes(script, typed, offered, tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "study.yaml").touch()
    (tmp_path / "script.bash").write_text(script, encoding="utf-8")
    words = " ".join(["safemerge", *typed])
    asked = (
        f"source script.bash; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; "
        '_shtab_safemerge; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", asked], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert sorted(done.stdout.split()) == offered
