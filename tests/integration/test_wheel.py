"""The built wheel alone, in environments and folders that know nothing of the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from safemerge import __version__
from safemerge.config.shipped import shipped_studies
from tests.unit.reports.synthetic_run import make_spec, write_run

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "search": ["{study}", "--dry-run"],
    "evaluate": ["{study}", "--model", "{folder}"],
    "merge": ["{recipe}", "merged"],
    "align": ["{align}"],
    "finetune": ["{finetune}"],
    "statistics": ["{measured}"],
    "optimize": ["{optimize}"],
    "generate": ["{generate}"],
    "robustness": ["{robustness}", "--dry-run"],
    "serve": ["{study}"],
    "demo": [],
    "init": ["--base", "{folder}", "--expert", "one={folder}"],
}
"""Commands that need more than the base install, with arguments."""
RECIPE = """\
base: {name: base, path: base}
experts: [{name: one, path: one}]
method: {name: linear, weights: {base: 0.5, one: 0.5}}
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what git keeps."""
    source, out = tmp_path_factory.mktemp("source") / "safemerge", tmp_path_factory.mktemp("dist")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("safemerge", "search_spaces"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(source)], check=True)
    (built,) = out.glob("safemerge-*.whl")
    return built


def environment(folder, wheel):
    """A virtual environment with the wheel and nothing else; returns its packages' folder."""
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet"]
    # NOTE: what PYTHONPATH leads to counts as installed.
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, env=own)
    return Path(sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder}))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """`safemerge` of an environment that sees every package of this one."""
    folder = tmp_path_factory.mktemp("installed")
    packages = environment(folder, wheel)
    # NOTE: the files of path configuration there are not read: no editable safemerge.
    (packages / "heavy.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "safemerge"


@pytest.fixture(scope="session")
def light(wheel, tmp_path_factory):
    """`safemerge` of an environment with what `pip install safemerge` brings, linked."""
    folder = tmp_path_factory.mktemp("light")
    packages = environment(folder, wheel)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pending, seen = [Requirement(text) for text in project["dependencies"]], set()
    while pending:
        requirement = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name in seen:
            continue
        seen.add(requirement.name)
        found = distribution(requirement.name)
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] != ".."}:
            there = Path(found.locate_file(top))
            if there.exists() and not (packages / top).exists():
                (packages / top).symlink_to(there)
        pending += [Requirement(text) for text in found.requires or []]
    assert not (packages / "torch").exists()
    return folder / "bin" / "safemerge"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder; the tree is not on its path."""
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(program, *arguments):
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def shipped(program, name):
    """A shipped file of an environment."""
    (folder,) = program.parents[1].glob("lib/python*/site-packages/safemerge/search_spaces")
    return folder / name


def test_the_wheel_holds_the_shipped_studies_and_where_it_was_built_from(wheel, installed, run):
    told = run(installed, "--version")
    assert told.stdout.splitlines()[0] == f"safemerge {__version__}"
    assert wheel.name.startswith(f"safemerge-{__version__}-")
    for name in shipped_studies():
        assert (
            shipped(installed, f"{name}.yaml").read_bytes()
            == (ROOT / "search_spaces" / f"{name}.yaml").read_bytes()
        )


@pytest.mark.parametrize("environment_of", ["installed", "light"])
def test_files_are_checked_and_explained_by_either_environment(environment_of, request, run):
    program = request.getfixturevalue(environment_of)
    folder = shipped(program, ".")
    done = run(program, "validate", *sorted(folder.rglob("*.yaml")))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(list(folder.rglob("*.yaml"))) > 20
    for arguments in (["schema", "study"], ["plan"], ["methods"], ["data", "list"]):
        done = run(program, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        assert done.stdout


def test_a_study_is_written_and_checked_in_an_empty_folder(installed, run, tiny_base, tiny_expert):
    models = ["--base", tiny_base, "--expert", f"math={tiny_expert}"]
    done = run(installed, "init", *models, "--suite", "strongreject", "--out", "mine.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert run(installed, "validate", "mine.yaml").stdout == "mine.yaml: ok (study)\n"


def test_the_base_install_draws_reports(light, run, tmp_path):
    write_run(tmp_path / "demo", num_sampled=8, spec=make_spec(num_trials=8))
    done = run(light, "report", "demo")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "report.html").is_file()
    assert list((tmp_path / "demo" / "figures").glob("*.png"))


@pytest.mark.parametrize("command", HEAVY)
def test_a_command_that_needs_more_says_which_extra(command, light, run, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    places = {
        "folder": str(tmp_path),
        "recipe": "recipe.yaml",
        "study": shipped(light, "demo.yaml"),
        "align": shipped(light, "ingredients/aligned.yaml"),
        "finetune": shipped(light, "ingredients/routing.yaml"),
    }
    for name in ("generate", "measured", "optimize", "robustness"):
        places[name] = shipped(light, f"{name}.yaml")
    done = run(light, command, *(text.format(**places) for text in HEAVY[command]))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"Install safemerge\[(cpu|gpu)\]", done.stderr), done.stderr
