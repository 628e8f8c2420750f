import datetime
import os
import platform
import subprocess

import safemerge
from safemerge import provenance


def test_provenance_names_versions_and_time_but_no_machine():
    found = provenance.current_provenance()
    assert found.safemerge == safemerge.__version__
    assert found.python == platform.python_version()
    assert found.packages["optuna"][0].isdigit()
    created = datetime.datetime.fromisoformat(found.created_at)
    assert created.utcoffset() == datetime.timedelta(0)
    assert platform.node() not in found.model_dump_json()


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert list(provenance.current_provenance().packages) == ["numpy"]


def _checkout(folder):
    package = folder / "safemerge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    identity = {
        f"GIT_{role}_{key}": "x" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True, env={**os.environ, **identity})
    return package / "__init__.py"


def test_the_commit_is_that_of_safemerges_own_checkout(tmp_path, monkeypatch):
    file = _checkout(tmp_path)
    monkeypatch.setattr(safemerge, "__file__", str(file))
    commit = provenance.current_provenance().commit
    assert len(commit) == 12
    file.write_text("changed = True\n")
    assert provenance.current_provenance().commit == f"{commit}-dirty"


def test_the_commit_of_a_checkout_around_an_environment_is_not_taken(tmp_path, monkeypatch):
    _checkout(tmp_path)
    installed = tmp_path / "venv" / "safemerge"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(safemerge, "__file__", str(installed / "__init__.py"))
    assert provenance.current_provenance().commit is None


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.current_provenance().commit is None
