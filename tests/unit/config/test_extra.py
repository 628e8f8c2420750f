import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from safemerge.cli import main
from safemerge.config.extra import EXTRAS, advice

PROJECT = tomllib.loads(
    (Path(__file__).resolve().parents[3] / "pyproject.toml").read_text(encoding="utf-8")
)["project"]


def wanted(extra):
    declared = PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(text).name) for text in declared} - {"safemerge"}


@pytest.mark.parametrize("extra", ["runtime", "lm-eval"])
def test_the_packages_of_an_extra_are_those_that_pyproject_names(extra):
    known = packages_distributions()
    brought = {canonicalize_name(name) for module in EXTRAS[extra] for name in known[module]}
    assert wanted(extra) <= brought
    # transformers and BoTorch bring them
    assert brought - wanted(extra) <= {"tokenizers", "scipy"}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("torch.nn", "Install safemerge[cpu], or safemerge[gpu]"),
        ("vllm", "Install safemerge[gpu] on a machine"),
        ("lm_eval.tasks", "Install safemerge[lm-eval]."),
        ("pandas", None),
        ("", None),
        (None, None),
    ],
)
def test_advice_is_given_on_what_an_extra_brings(module, words, monkeypatch, capsys):
    found = advice(module)
    assert found is None if words is None else words in found


def test_a_missing_package_ends_a_command_with_the_extra(monkeypatch, capsys):
    from safemerge.commands import validate

    def run(options):
        raise ModuleNotFoundError("No module named 'ray.serve'", name="ray.serve")

    monkeypatch.setattr(validate, "run", run)
    assert main(["validate", "x.yaml"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("safemerge: validate: needs the package ray.serve; got none. Install ")


def test_a_missing_package_that_no_extra_brings_is_a_fault_of_ours(monkeypatch):
    from safemerge.commands import validate

    def run(options):
        raise ModuleNotFoundError("No module named 'pandas'", name="pandas")

    monkeypatch.setattr(validate, "run", run)
    with pytest.raises(ModuleNotFoundError):
        main(["validate", "x.yaml"])
