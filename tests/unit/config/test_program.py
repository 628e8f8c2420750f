import argparse

import pytest

from safemerge.config.program import PROGRAMS, Program, load_attribute, register
from safemerge.config.schema import detect_kind, kinds
from safemerge.config.statistics import StatisticsSpec


@pytest.fixture
def toy():
    """A program that is registered for the length of a test."""
    program = Program(
        name="toy",
        help="do nothing",
        add_arguments=lambda parser: parser.add_argument("file"),
        run="builtins:print",
        spec="safemerge.config.statistics:StatisticsSpec",
        marks=frozenset({"toys"}),
    )
    register(program)
    yield program
    del PROGRAMS["toy"]


def test_a_registered_program_adds_a_kind_of_file(toy):
    assert kinds()["toy"] is StatisticsSpec
    assert detect_kind({"toys": 1}) == "toy"
    assert detect_kind({"kind": "toy"}) == "toy"


def test_a_program_of_the_same_name_takes_its_place(toy):
    register(toy)
    assert [name for name in PROGRAMS if name == "toy"] == ["toy"]


def test_what_a_program_names_is_imported_when_it_is_needed(toy):
    assert load_attribute(toy.run) is print
    parser = argparse.ArgumentParser()
    toy.add_arguments(parser)
    assert parser.parse_args(["f.yaml"]).file == "f.yaml"
