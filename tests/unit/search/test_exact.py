"""Weights between trained models are estimates: the front is scored at exact values."""

import shutil

import pytest

from safemerge.config.checkpoint import CheckpointRef, Neighbours, interpolated
from safemerge.config.document import parse_document
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.errors import ConfigError, StudyError
from safemerge.front import front_trials
from safemerge.search import Failure
from safemerge.search.untrained import is_interpolated
from safemerge.testing.landscapes import LAMBDA, SMOOTH, lambda_landscape, landscape_study


def line_study(*, untrained=(), num_trials=6, between="interpolate", **changes):
    line = {"low": 1.0, "high": 100.0, "log": True, "knots": [1, 10, 100], "between": between}
    return lambda_landscape(
        line,
        untrained=untrained,
        num_trials=num_trials,
        sampler={"name": "random"},
        evaluator={"num_retries": 1},
        **{"references": False, **changes},
    )


class Places:
    """Says where experts come to, and notes what was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, expert, settings):
        value = settings["booster.lambda"]
        self.asked.append(value)
        return CheckpointRef(name=expert, path=f"/cache/{expert}-{value}")


def score(study, proposal, *, shift=0.0):
    """Score by the landscape; `shift` lowers the accuracy that a trained model has."""
    result = SMOOTH.evaluate(proposal.recipe)
    if proposal.exact_of is None or not shift:
        return result
    metrics = {
        name: item.model_copy(update={"value": item.value - shift}) if "acc" in name else item
        for name, item in result.metrics.items()
    }
    return result.model_copy(update={"metrics": metrics})


def drive(study, **changes):
    """Tell every proposal; what waits for a model is given it first. Return the records."""
    records = []
    while (proposal := study.ask()) is not None:
        for path in study.wanted(proposal.number):
            study.add_trained(CheckpointRef(name="made", path=path, digest=f"weights of {path}"))
        proposal = study.proposal(proposal.number)
        records.append(study.tell(proposal.number, score(study, proposal, **changes)))
    return records


def safety_of(record):
    return next(item for item in record.recipe["experts"] if item["name"] == "safety")


def test_a_value_between_knots_stands_for_weights_between_theirs(open_study):
    study = open_study(line_study())
    proposal = study.ask()
    value = proposal.params[LAMBDA]
    assert float(f"{value:.3g}") == value
    line = next(ref for ref in proposal.recipe.experts if ref.name == "safety").between
    low, high = (
        ("of safety--1", "of safety--2") if value < 10 else ("of safety--2", "of safety--3")
    )
    assert (line.low.digest, line.high.digest) == (low, high)
    assert is_interpolated(proposal.recipe)


def test_values_that_snap_are_trained_models(open_study):
    study = open_study(line_study(between="snap", num_trials=12))
    records = drive(study)
    assert {record.params[LAMBDA] for record in records} == {1, 10, 100}
    assert not any(record.interpolated for record in records)
    assert all(record.exact_of is None for record in records)


def test_the_front_is_trained_at_its_exact_values_before_the_end(open_study):
    place = Places()
    study = open_study(line_study(), place)

    records = drive(study)

    sampled, exact = records[:6], records[6:]
    assert all(record.interpolated for record in sampled)
    assert exact
    by_number = {record.number: record for record in sampled}
    for record in exact:
        estimate = by_number[record.exact_of]
        assert record.params == estimate.params
        assert safety_of(record)["path"] == f"/cache/safety-{record.params[LAMBDA]}"
        assert safety_of(record)["digest"] == f"weights of {safety_of(record)['path']}"
        assert record.recipe["method"] == estimate.recipe["method"]
    assert sorted(place.asked) == sorted(record.params[LAMBDA] for record in exact)
    assert study.done
    front = study.front()
    assert [record.number for record in front] == [
        record.number for record in front_trials(study.spec, study.records)
    ]
    assert {record.number for record in front} <= {record.number for record in exact}


def test_what_a_wrong_estimate_kept_off_the_front_gets_its_turn(open_study):
    plain = open_study(line_study(num_trials=12), Places())
    once = exact_ones(drive(plain))
    plain.close()
    shutil.rmtree(plain.store.folder)
    again = exact_ones(drive(open_study(line_study(num_trials=12), Places()), shift=0.9))
    assert set(once) < set(again)
    assert len(again) == len(set(again))


def exact_ones(records):
    return [record.exact_of for record in records if record.exact_of is not None]


def test_a_killed_search_goes_on_with_what_is_left_to_train(open_study):
    place = Places()
    first = open_study(line_study(), place)
    while (proposal := first.ask()).exact_of is None:
        first.tell(proposal.number, score(first, proposal))
    first.close()

    second = open_study(line_study(), place)
    records = drive(second)

    assert records[0].exact_of == proposal.exact_of
    assert all(record.exact_of is not None for record in records)
    assert second.done
    second.close()
    more = drive(open_study(line_study(num_trials=8), place))
    assert sum(record.exact_of is None for record in more) == 2


@pytest.mark.parametrize("between", ["snap", "interpolate"])
def test_a_sampled_recipe_in_flight_is_the_same_after_a_kill(open_study, between):
    first = open_study(line_study(between=between), Places())
    before = first.ask()
    first.close()
    second = open_study(line_study(between=between), Places())
    assert second.interrupted == (before.number,)
    (record,) = second.records
    assert record.candidate == before.candidate
    assert record.params == before.params
    assert second.ask().candidate == before.candidate


def test_a_model_that_was_trained_again_with_other_weights_is_refused(open_study):
    names = ["safety--1", "safety--2", "safety--3"]
    first = open_study(line_study(between="snap", untrained=names))
    used = drive(first)[0]
    first.close()
    path = safety_of(used)["path"]
    spec = line_study(between="snap", untrained=names, num_trials=9)
    other = CheckpointRef(name=path.removeprefix("/made/"), path=path, digest="other")

    with pytest.raises(StudyError, match=r"model 'safety' must still have the weights it had"):
        open_study(spec.with_made(other))
    late = open_study(spec)
    with pytest.raises(StudyError, match=f"got other in {path}"):
        late.add_trained(other)


def test_one_that_cannot_be_trained_is_tried_again_and_given_up(open_study):
    study = open_study(line_study(num_trials=1), Places())
    proposal = study.ask()
    study.tell(proposal.number, score(study, proposal))
    for attempt in range(2):
        exact = study.ask()
        assert (exact.exact_of, exact.attempt) == (proposal.number, attempt)
        study.tell(exact.number, Failure("training failed: not finite"))
    assert study.ask() is None
    assert study.done
    assert study.front() == []


def test_knots_that_are_not_trained_yet_are_waited_for(open_study):
    study = open_study(line_study(untrained=["safety--1", "safety--2", "safety--3"]))
    proposal = study.ask()
    paths = study.wanted(proposal.number)
    assert len(paths) == 2
    before = proposal.candidate
    for path in paths:
        study.add_trained(CheckpointRef(name="made", path=path, digest=f"weights of {path}"))
    after = study.proposal(proposal.number)
    assert study.wanted(proposal.number) == []
    assert after.candidate != before
    line = next(ref for ref in after.recipe.experts if ref.name == "safety")
    assert line.digest == line.between.digest is not None


def test_a_candidate_in_between_is_itself_wherever_its_ends_lie():
    spec = line_study()
    recipe = MergeRecipe.model_validate(spec.template(spec.spaces[0]))

    def digest(folder, share):
        low, high = (CheckpointRef(name=n, path=f"{folder}/{n}", digest=f"of {n}") for n in "ab")
        line = interpolated("safety", Neighbours(low=low, high=high, share=share))
        refs = {ref.name: ref for ref in recipe.checkpoints} | {"safety": line}
        return recipe.with_checkpoints(refs).digest

    assert digest("/here", 0.5) == digest("/there", 0.5)
    assert digest("/here", 0.5) != digest("/here", 0.6)


@pytest.mark.parametrize(
    ("experts", "vary", "words"),
    [
        (
            [{"name": "safety", "align": "/a.yaml"}],
            {
                LAMBDA: {"low": 1, "high": 9, "knots": [1, 9], "between": "interpolate"},
                "experts.safety.booster.alpha": {
                    "low": 0.1,
                    "high": 0.9,
                    "knots": [0.1, 0.9],
                    "between": "interpolate",
                },
            },
            "weights are interpolated along one setting of an expert; got experts.safety",
        ),
        (
            [{"name": "safety", "align": "/a.yaml", "statistics": {"gather": "/s.yaml"}}],
            {LAMBDA: {"low": 1, "high": 9, "knots": [1, 9], "between": "interpolate"}},
            "between: must be snap for a model with statistics",
        ),
        (
            [{"name": "safety", "align": "/a.yaml"}],
            {LAMBDA: {"low": 1, "high": 9, "knots": [1, 9], "between": "interpolate"}},
            "between: must be snap with vocabulary: base; got interpolate",
        ),
        (
            [{"name": "safety", "align": "/a.yaml"}],
            {"method.weights.safety": {"low": 0, "high": 1, "knots": [0, 1]}},
            "knots: are values of a training file that are trained",
        ),
    ],
)
def test_lines_that_cannot_be_are_told(experts, vary, words):
    document = landscape_study().resolved()
    document["experts"] = [{"name": "skill", "path": "/nowhere/skill"}, *experts]
    document["spaces"][0]["vary"].update(vary)
    document["vocabulary"] = "base" if "vocabulary" in words else "refuse"
    with pytest.raises(ConfigError, match=words):
        parse_document(document, StudySpec, where="study.yaml")
