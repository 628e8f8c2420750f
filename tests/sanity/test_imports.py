"""What answers at once must not wait for torch, Ray, vLLM or transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "vllm", "transformers")

RUN = """
import contextlib, io, json, sys
{code}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})), file=sys.__stdout__)
"""
COMMAND = """
from safemerge.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    try:
        code = main({arguments})
    except SystemExit as ended:
        code = ended.code
assert code == 0, code
"""


def loaded(code):
    """Top-level modules that a fresh interpreter holds after running some code."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(code=code)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["search", "--help"],
        ["validate", "search_spaces/demo.yaml", "search_spaces/ingredients/aligned.yaml"],
        ["schema", "study"],
        ["data", "list"],
        ["plan", "--share", "0.9"],
    ],
)
def test_commands_that_only_look_import_nothing_heavy(arguments):
    found = loaded(COMMAND.format(arguments=arguments))
    assert "safemerge" in found
    assert found.isdisjoint((*HEAVY, "optuna", "datasets", "peft", "matplotlib"))


@pytest.mark.parametrize(
    "module", ["config", "records", "store", "pareto", "inference", "reports", "errors"]
)
def test_light_rooms_import_nothing_heavy(module):
    found = loaded(f"import safemerge.{module}")
    assert found.isdisjoint((*HEAVY, "optuna", "datasets", "peft"))


def test_the_search_imports_optuna_and_nothing_heavy():
    found = loaded("import safemerge.search")
    assert "optuna" in found
    assert found.isdisjoint(HEAVY)


def test_a_heavy_import_would_be_seen():
    assert "torch" in loaded("import safemerge.merge")
