"""The low rung: what is pruned there, what never is, and what is kept of it."""

import hashlib
import random

import pytest
from optuna.trial import TrialState
from search_driving import FAST, optuna_states, stored

from safemerge.config.rung import RungSpec
from safemerge.pareto import dominates
from safemerge.records import RungResult, TrialRecord
from safemerge.search import Failure, SearchStudy
from safemerge.search.rung import find_rival, is_audited
from safemerge.testing.landscapes import ACCURACY, HARM, SMOOTH, landscape_values, weights_of

ROWS = 30
PAIRS = [{"source": {"kind": "file", "path": "/nowhere/pairs.jsonl"}, "response": "{answer}"}]
RUNG = {"sets": {"skill": PAIRS, "safety": PAIRS}, "audit": 0.0}
SPEC = RungSpec.model_validate(RUNG)


def losses(skill, safety, *, seed=0, noise=0.02):
    """Two sets of rows around two means, with the same noise of each row for every candidate."""
    rows = random.Random(1)
    own = random.Random(seed)
    return {
        name: [[mean + rows.random() + own.uniform(-noise, noise) for _ in range(ROWS)]]
        for name, mean in {"skill": skill, "safety": safety}.items()
    }


def named(name):
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def found(skill, safety, *, candidate="asked", **how):
    return RungResult(candidate=named(candidate), losses=losses(skill, safety, **how))


def scored(number, skill, safety, *, feasible=True, state="COMPLETE", **how):
    return TrialRecord(
        number=number,
        role="sampled",
        label=f"trial {number}",
        state=state,
        recipe={},
        candidate=named(f"trial {number}"),
        feasible=feasible,
        rung=found(skill, safety, candidate=f"trial {number}", seed=number, **how),
    )


def test_a_candidate_that_is_worse_on_every_set_has_a_rival():
    rival = find_rival(SPEC, found(0.9, 0.9), [scored(3, 0.5, 0.6), scored(4, 0.2, 0.95)])
    assert rival is not None
    assert rival.number == 3
    assert rival.p_value <= SPEC.level
    assert rival.reason.startswith("rung: trial 3 has lower losses (skill ")


@pytest.mark.parametrize(
    "others",
    [
        [],
        [scored(1, 0.1, 0.95), scored(2, 0.95, 0.1)],
        [scored(1, 0.5, 0.5, feasible=False)],
        [scored(1, 0.5, 0.5, state="PRUNED")],
        [scored(1, 0.5, 0.5).model_copy(update={"rung": None})],
        [scored(1, 0.5, 0.5).model_copy(update={"candidate": named("asked")})],
    ],
    ids=["none", "each better on one", "infeasible", "pruned", "no losses", "itself"],
)
def test_only_a_feasible_scored_candidate_that_is_better_on_every_set_is_a_rival(others):
    assert find_rival(SPEC, found(0.9, 0.9), others) is None


def test_a_difference_within_the_noise_makes_no_rival():
    near = scored(1, 0.895, 0.895, noise=0.2)
    assert find_rival(SPEC, found(0.9, 0.9, noise=0.2), [near]) is None


def test_holm_asks_more_of_each_the_more_are_compared_with():
    # Nine differences of ten point one way: p about 0.02, so that three such rivals are too many.
    asked = RungResult(candidate=named("asked"), losses={"skill": [[0.0] * 10]})
    one = RungSpec.model_validate({"sets": {"skill": PAIRS}})
    values = [-1.0] * 9 + [1.0]
    rivals = [
        scored(number, 0.0, 0.0).model_copy(
            update={"rung": RungResult(candidate=named(str(number)), losses={"skill": [values]})}
        )
        for number in range(4)
    ]
    assert find_rival(one, asked, rivals[:1]) is not None
    assert find_rival(one, asked, rivals) is None


def test_many_rivals_make_nothing_unprunable():
    # Holm multiplies by 150: a p-value of one in 2001 would not be small enough.
    rivals = [scored(number, 0.2, 0.3) for number in range(150)]
    assert find_rival(SPEC, found(0.9, 0.9), rivals) is not None


def test_losses_on_other_rows_are_compared_with_none():
    other = scored(1, 0.2, 0.2)
    longer = {name: [[*rows[0], 1.0]] for name, rows in other.rung.losses.items()}
    changed = other.rung.model_copy(update={"losses": longer, "rows": "f" * 16})
    other = other.model_copy(update={"rung": changed})
    assert find_rival(SPEC, found(0.9, 0.9), [other]) is None


def test_a_margin_has_to_be_passed():
    by_margin = RungSpec.model_validate(RUNG | {"margin": 0.3})
    assert find_rival(by_margin, found(0.9, 0.9), [scored(1, 0.7, 0.3)]) is None
    assert find_rival(by_margin, found(0.9, 0.9), [scored(1, 0.4, 0.3)]) is not None


def test_sources_weigh_what_they_are_given():
    pairs = [PAIRS[0] | {"weight": 3.0}, PAIRS[0]]
    spec = RungSpec.model_validate({"sets": {"skill": pairs}})
    assert spec.means({"skill": [[0.0, 2.0], [5.0]]}) == {"skill": 0.75 * 1.0 + 0.25 * 5.0}


def test_the_audit_draws_its_share_by_seed_and_candidate():
    spec = RungSpec.model_validate(RUNG | {"audit": 0.2})
    names = [named(str(number)) for number in range(2000)]
    drawn = [is_audited(spec, seed=1, candidate=name) for name in names]
    assert 300 < sum(drawn) < 500
    assert drawn == [is_audited(spec, seed=1, candidate=name) for name in names]
    assert drawn != [is_audited(spec, seed=2, candidate=name) for name in names]
    assert not any(is_audited(SPEC, seed=1, candidate=name) for name in names)


EAGER = {**FAST, "sampler": {"name": "random", "startup": 1}}


def search(study, limit=10_000):
    """Let every proposal take the rung, as a landscape has it, and score what goes on."""
    records = []
    while len(records) < limit and (proposal := study.ask()) is not None:
        accuracy, harm = landscape_values(*weights_of(proposal.recipe))
        taken = RungResult(
            candidate=proposal.candidate,
            losses=losses(1 - accuracy, harm, seed=proposal.number, noise=0.005),
        )
        pruned = study.promote(proposal.number, taken)
        outcome = pruned or SMOOTH.evaluate(proposal.recipe)
        records.append(study.tell(proposal.number, outcome))
    return records


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "random"])
def test_what_is_pruned_is_dominated_and_costs_its_trial(begin, sampler):
    settings = {"name": sampler, "startup": 6}
    study = begin(storage="journal", num_trials=40, rung=RUNG, sampler=settings)
    records = search(study)
    assert study.done
    sampled = [record for record in records if record.role == "sampled"]
    assert {record.state for record in sampled[:6]} == {"COMPLETE"}
    pruned = [record for record in records if record.state == "PRUNED"]
    assert len(pruned) >= 5
    assert sum(record.role == "sampled" for record in records) == 40
    by_number = {record.number: record for record in records}
    for record in pruned:
        assert record.result is None
        assert record.objectives == {}
        assert not record.feasible
        rival = by_number[record.rival]
        accuracy, harm = landscape_values(
            record.params["method.weights.skill"], record.params["method.weights.safety"]
        )
        theirs = [rival.objectives[ACCURACY], rival.objectives[HARM]]
        assert dominates(theirs, [accuracy, harm], ["maximize", "minimize"])
    assert not {item.number for item in pruned} & {item.number for item in study.front()}
    assert optuna_states(study).count(TrialState.PRUNED) == len(pruned)
    assert stored(study) == records


def test_audited_trials_are_scored_and_keep_their_rival(begin):
    study = begin(**EAGER, num_trials=30, rung=RUNG | {"audit": 1.0})
    records = search(study)
    assert {record.state for record in records} == {"COMPLETE"}
    assert any(record.rival is not None and record.result is not None for record in records)


def test_reference_points_are_never_pruned_and_are_rivals(begin):
    study = begin(storage="journal", num_trials=1, rung=RUNG)
    (base, *_) = search(study, limit=4)
    # The base is worse than the plain mean on both, and is scored all the same.
    assert base.label == "base"
    assert base.state == "COMPLETE"
    assert base.rung is not None


def test_a_resumed_study_keeps_what_was_pruned_and_its_losses(begin):
    changes = {**EAGER, "references": True, "rung": RUNG}
    first = begin(**changes, num_trials=30)
    before = search(first)
    asked = {record.number for record in before}
    first.close()
    second = begin(**changes, num_trials=35)
    assert list(second.records) == before
    after = search(second)
    assert len(after) == 5
    assert not asked & {record.number for record in after}
    pruned = [item for item in before if item.state == "PRUNED"]
    assert pruned
    assert all(item.rung is not None for item in before)


def test_optunas_side_is_rebuilt_with_what_was_pruned(begin):
    changes = {**EAGER, "references": True, "rung": RUNG, "num_trials": 20}
    first = begin(**changes)
    records = search(first)
    first.close()
    (first.store.folder / "study.journal").unlink()
    second = begin(**changes)
    states = optuna_states(second)
    assert states.count(TrialState.PRUNED) == sum(r.state == "PRUNED" for r in records) > 0
    assert second.done


def test_losses_of_another_candidate_fail_the_trial_and_are_not_kept(begin):
    study = begin(**EAGER, rung=RUNG, num_trials=3)
    proposal = study.ask()
    failure = study.promote(proposal.number, found(0.5, 0.5))
    assert isinstance(failure, Failure)
    assert failure.retry
    record = study.tell(proposal.number, failure)
    assert record.state == "FAIL"
    assert record.rung is None
    assert "losses of candidate" in record.reason


def test_losses_are_known_of_what_was_on_the_rung(begin):
    study = begin(**EAGER, rung=RUNG, num_trials=3)
    proposal = study.ask()
    assert study.known_rung(proposal.candidate) is None
    taken = found(0.5, 0.5).model_copy(update={"candidate": proposal.candidate})
    study.promote(proposal.number, taken)
    study.tell(proposal.number, Failure("crashed after it"))
    assert study.known_rung(proposal.candidate) == taken


def test_a_trial_killed_after_its_rung_is_asked_again(begin):
    changes = {**FAST, "rung": RUNG, "num_trials": 3}
    first = begin(**changes)
    proposal = first.ask()
    taken = found(0.5, 0.5).model_copy(update={"candidate": proposal.candidate})
    assert first.promote(proposal.number, taken) is None
    first.close()
    second = begin(**changes)
    assert isinstance(second, SearchStudy)
    assert second.interrupted == (0,)
    again = second.ask()
    assert again.recipe == proposal.recipe
    assert stored(second)[0].rung is None
