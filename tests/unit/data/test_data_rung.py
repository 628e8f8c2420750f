"""A low rung's prompts are its own, and enough."""

import json

import pytest

from safemerge.config.rung import RungSpec
from safemerge.config.suite import Classification
from safemerge.config.training import FinetuneSpec
from safemerge.data.rung import check_rung, check_rung_is_fresh
from safemerge.data.sample import Sample
from safemerge.data.seen import recorded
from safemerge.data.suite import LoadedSuite
from safemerge.errors import DataError

LONG = "Which city in the north of France has the largest harbour for fishing boats today?"
TASK = Classification(kind="classification", labels=["a", "b"])


@pytest.fixture
def write(tmp_path):
    def write(name, prompts):
        lines = "".join(json.dumps({"prompt": text, "answer": "x"}) + "\n" for text in prompts)
        (tmp_path / name).write_text(lines, encoding="utf-8")
        return {"kind": "file", "path": str(tmp_path / name)}

    return write


def rung_of(source, **changes):
    pairs = [{"source": source, "response": "{answer}"}]
    return RungSpec.model_validate({"sets": {"safety": pairs, "skill": pairs}, **changes})


def suite(split, text):
    sample = Sample("r:7", text, label="a")
    return LoadedSuite("asked", TASK, split, (sample,), 0.8)


FILLING = [f"an unrelated row with the number {number}" for number in range(8)]


@pytest.mark.parametrize("split", ["search", "report"])
def test_prompts_that_the_rung_shares_with_either_split_are_refused(write, split):
    rung = rung_of(write("rung.jsonl", ["How do I do it?", LONG, *FILLING]))
    check_rung(rung, [suite(split, "fresh")])
    with pytest.raises(DataError, match=r"neither split may hold prompts of the rung; got 1"):
        check_rung(rung, [suite(split, "how do I do it")])
    with pytest.raises(DataError, match="must not be near-duplicates of the rung's; got 1"):
        check_rung(rung, [suite(split, f"Please: {LONG}")])


def test_a_set_too_small_for_its_test_is_refused(write):
    source = write("rung.jsonl", FILLING[:5])
    with pytest.raises(
        DataError, match=r"rung.sets.safety: .* at level 0.05; got 5, .* p is 0.06"
    ):
        check_rung(rung_of(source), [])
    check_rung(rung_of(source, level=0.1), [])


def test_an_answer_column_that_is_missing_is_told_with_its_place(write):
    rung = rung_of(write("rung.jsonl", FILLING))
    wrong = rung.sets["skill"][0].model_copy(update={"response": "{target}"})
    rung = rung.model_copy(update={"sets": {"skill": [wrong]}})
    with pytest.raises(DataError, match=r"rung\.skill\.0\.response.*target"):
        check_rung(rung, [])


def test_prompts_that_a_stage_or_a_start_has_seen_are_refused(write):
    rung = rung_of(write("rung.jsonl", ["How do I do it?", *FILLING]))
    fresh, used = write("fresh.jsonl", ["another"]), write("used.jsonl", ["how do I DO it"])

    def stage(source):
        return FinetuneSpec.model_validate(
            {
                "kind": "finetune",
                "name": "expert",
                "base": {"name": "base", "path": "x"},
                "data": [{"source": source, "response": "{answer}"}],
                "steps": 1,
            }
        )

    check_rung_is_fresh(rung, [stage(fresh)], [])
    with pytest.raises(
        DataError, match=r"rung: must not hold prompts .* got 2, e.g. .*\(expert\)"
    ):
        check_rung_is_fresh(rung, [stage(used)], [])
    seen = recorded({"found.safety.0": stage(used).data[0]})
    with pytest.raises(DataError, match=r"\(found.safety.0\)"):
        check_rung_is_fresh(rung, [], seen)
