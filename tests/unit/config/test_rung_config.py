"""A study's low rung, as declared."""

from pathlib import Path

import pytest

from safemerge.config.document import parse_document
from safemerge.config.study import StudySpec
from safemerge.testing.landscapes import landscape_study

DOCUMENT = landscape_study().resolved()
PAIRS = {"source": {"kind": "file", "path": "pairs.jsonl"}, "response": "{answer}"}


def test_a_rung_is_part_of_a_study_and_found_beside_its_file():
    rung = {"sets": {"safety": [PAIRS], "skill": [PAIRS, PAIRS]}}
    study = parse_document(DOCUMENT | {"rung": rung}, StudySpec, where="f")
    assert parse_document(study.resolved(), StudySpec, where="f") == study
    located = study.located(Path("/studies")).rung
    assert located.sets["skill"][1].source.path == "/studies/pairs.jsonl"
    assert list(located.prompt_sets) == ["rung.safety.0", "rung.skill.0", "rung.skill.1"]


def test_a_study_without_a_rung_keeps_its_digest():
    assert "rung" not in DOCUMENT


@pytest.mark.parametrize(
    ("rung", "words"),
    [
        ({"sets": {}}, "rung.sets"),
        ({"sets": {"safety": []}}, "rung: sets must have a source each; got none for safety."),
        ({"sets": {"safety": [PAIRS]}}, "rung.sets: 2 objectives need at least 2 sets; got 1."),
        ({"sets": {"a": [PAIRS], "b": [PAIRS]}, "level": 1}, "rung.level"),
        ({"sets": {"a": [PAIRS], "b": [PAIRS]}, "margin": -1}, "rung.margin"),
        ({"sets": {"a": [PAIRS], "b": [PAIRS]}, "audit": 2}, "rung.audit"),
    ],
)
def test_a_rung_that_cannot_work_is_told(problems, rung, words):
    (line,) = problems(DOCUMENT | {"rung": rung}, StudySpec)
    assert words in line


def test_a_synchronous_sampler_is_refused_beside_it(problems):
    rung = {"sets": {"a": [PAIRS], "b": [PAIRS]}}
    document = DOCUMENT | {"rung": rung, "sampler": {"synchronous": True}}
    (line,) = problems(document, StudySpec)
    assert "sampler.synchronous: must be false with rung" in line


def test_a_generator_without_a_split_for_the_rung_is_told(problems):
    source = {"kind": "generator", "name": "unsafe-questions", "split": "rung", "count": 9}
    rung = {"sets": {"a": [PAIRS], "b": [PAIRS | {"source": source}]}}
    (line,) = problems(DOCUMENT | {"rung": rung}, StudySpec)
    assert "split rung is one of reviews alone; got it with unsafe-questions" in line
