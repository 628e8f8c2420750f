import subprocess
import sys

import pytest

import safemerge.__main__
import safemerge.programs
from safemerge import __version__
from safemerge.cli import main
from safemerge.config.base import StrictModel
from safemerge.config.program import PROGRAMS, load_attribute


@pytest.mark.parametrize("name", ["optimize", "generate", "robustness"])
def test_what_a_program_names_is_there(name):
    program = PROGRAMS[name]
    assert issubclass(load_attribute(program.spec), StrictModel)
    paths = [program.run, program.report, program.method_table]
    assert all(load_attribute(path) is not None for path in paths if path is not None)


def test_the_programs_are_all_registered():
    assert set(PROGRAMS) == {"optimize", "generate", "robustness"}
    assert safemerge.programs.__doc__


def test_the_package_is_the_command_line():
    assert safemerge.__main__.main is main
    command = [sys.executable, "-m", "safemerge", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.split()[:2] == ["safemerge", __version__]
