"""Models that a report needs and that are gone from the cache are trained again first."""

import json

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.distributed.background_training import Supply, lacking_models, make_lacking
from safemerge.distributed.capacity import Room
from safemerge.errors import StudyError, TrainingError
from safemerge.testing.landscapes import LAMBDA, SMOOTH, lambda_landscape

GONE = "safety--2"


def lambda_study(vary, **changes):
    return lambda_landscape(vary, num_trials=4, **changes)


CHOICES = {"choices": [0, 5]}
LINE = {"low": 1, "high": 9, "log": True, "knots": [1, 9], "between": "interpolate"}


def finish(study):
    while (proposal := study.ask()) is not None:
        for path in study.wanted(proposal.number):
            study.add_trained(CheckpointRef(name="made", path=path, digest=f"trained {path}"))
        recipe = study.proposal(proposal.number).recipe
        study.tell(proposal.number, SMOOTH.evaluate(recipe))
    study.close()


def supply_of(make):
    refs = {f"/made/{GONE}": CheckpointRef(name=GONE, align="/a.yaml")}
    return Supply(make, refs, Room(False, 1), num_retries=0)


def trained_again(ref, path):
    return CheckpointRef(name=ref.name, path=path, digest=f"of {ref.name}")


def nowhere(expert, settings):
    raise AssertionError("no expert of this study is trained at values of its own")


def test_a_variant_that_was_removed_is_trained_again_for_the_report(open_study):
    finish(open_study(lambda_study(CHOICES)))
    study = open_study(lambda_study(CHOICES, untrained=[GONE]))
    assert lacking_models(study, nowhere) == [f"/made/{GONE}"]
    with supply_of(trained_again) as supply:
        make_lacking(study, supply, nowhere)
    assert study.done
    assert lacking_models(study, nowhere) == []


def test_a_study_lacks_nothing_before_its_budget_is_spent(open_study):
    assert lacking_models(open_study(lambda_study(CHOICES, untrained=[GONE])), nowhere) == []


def test_a_model_that_cannot_be_trained_again_is_told(open_study):
    def broken(ref, path):
        raise TrainingError("safety, step 3: the loss must be finite; got nan.")

    finish(open_study(lambda_study(CHOICES)))
    study = open_study(lambda_study(CHOICES, untrained=[GONE]))
    with supply_of(broken) as supply, pytest.raises(TrainingError, match=rf"{GONE}: .*step 3"):
        make_lacking(study, supply, nowhere)


def test_a_model_that_comes_out_otherwise_is_refused(open_study):
    def otherwise(ref, path):
        return CheckpointRef(name=ref.name, path=path, digest="of another machine")

    finish(open_study(lambda_study(CHOICES)))
    study = open_study(lambda_study(CHOICES, untrained=[GONE]))
    with supply_of(otherwise) as supply, pytest.raises(StudyError, match="weights it had"):
        make_lacking(study, supply, nowhere)


def test_a_front_trained_at_its_own_values_lacks_models_that_are_not_in_the_cache(open_study):
    there = set()

    def place(expert, settings):
        path = f"/cache/{expert}-{settings['booster.lambda']}"
        digest = f"trained {path}" if path in there else None
        return CheckpointRef(name=expert, path=path, digest=digest)

    finish(open_study(lambda_study(LINE), place))
    study = open_study(lambda_study(LINE), place)
    exact = {item.params[LAMBDA] for item in study.front() if item.exact_of is not None}
    assert exact
    assert set(lacking_models(study, place)) == {f"/cache/safety-{value}" for value in exact}
    there.update(lacking_models(study, place))
    assert lacking_models(study, place) == []


def test_a_run_of_an_earlier_version_names_its_untrained_models_by_the_old_key():
    spec = lambda_study(CHOICES, untrained=[GONE])
    document = spec.resolved()
    document["unmade"] = document.pop("untrained")
    assert type(spec).model_validate_json(json.dumps(document)) == spec
