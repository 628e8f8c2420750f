"""What the page says of the low rung: counts, correlations, and what was audited."""

import re

import pytest
import synthetic_run as synthetic

from safemerge.records import RungResult, Timings
from safemerge.reports import front_table, load_run, model_card, render_html
from safemerge.reports.run import outcome
from safemerge.reports.section_rung import rung_section
from safemerge.reports.timing import summarize_timings

PAIRS = [{"source": {"kind": "file", "path": "/nowhere/pairs.jsonl"}, "response": "{answer}"}]
RUNG = {"sets": {"refusals": PAIRS, "tasks": PAIRS}}


def with_rung(trial, total_s=1.5):
    """Losses that go with the objectives: the more harm, and the less skill, the higher."""
    skill = trial.objectives.get(synthetic.SKILL, 0.3)
    harm = trial.objectives.get(synthetic.HARM, 0.9)
    losses = {"refusals": [[harm, harm + 0.5]], "tasks": [[1 - skill, 2 - skill]]}
    timings = Timings(total_s=total_s)
    rung = RungResult(candidate=trial.candidate, losses=losses, timings=timings)
    return trial.model_copy(update={"rung": rung})


def pruned(trial, rival):
    gone = {"state": "PRUNED", "result": None, "objectives": {}, "violations": {}}
    reason = f"rung: trial {rival} has lower losses <&>"
    return trial.model_copy(update={**gone, "feasible": False, "reason": reason, "rival": rival})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run in which the last dominated trials were pruned, and one was audited."""
    spec = synthetic.make_spec(num_trials=20, rung=RUNG)
    sizes = synthetic.Synthetic(counts={"search": 40, "report": 60})
    trials, rates = synthetic.make_trials(20, synthetic=sizes)
    front = {trial.number for trial in synthetic.front_trials(spec, trials)}
    made, behind = [], 0
    for trial in trials:
        trial = with_rung(trial) if trial.state == "COMPLETE" else trial
        if trial.role == "sampled" and trial.number not in front and outcome(trial) == "feasible":
            behind += 1
            if behind <= 3:
                trial = pruned(trial, 1)
            elif behind == 4:
                trial = trial.model_copy(update={"rival": 1})
        made.append(trial)
    folder = tmp_path_factory.mktemp("rung") / "demo"
    synthetic.write_run(folder, spec=spec, trials=made, synthetic=sizes, publish=False)
    del rates
    return load_run(folder)


def text_of(markup):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", markup))


def test_the_page_counts_pruned_trials_and_tells_their_reason(run):
    page = render_html(run)
    told = text_of(page)
    assert run.counts["pruned"] == 3
    assert "3 pruned" in told
    assert "rung: trial 1 has lower losses &lt;&amp;&gt;" in page
    assert "pruned rung: trial 1" in told
    assert front_table(run)


def test_the_rung_is_told_with_its_cost_and_its_audit(run):
    told = text_of(rung_section(run))
    screened = sum(trial.rung is not None for trial in run.trials)
    assert f"{screened} candidates took losses on 4 pairs first (refusals and tasks)" in told
    assert "a scored candidate had lower losses on every set: 3." in told
    assert "Beaten there and scored all the same: 1, of these on the front: 0." in told
    assert "A candidate took 1.50 s on the rung" in told


def test_losses_are_compared_with_every_objective(run):
    rows = re.findall(r"<tr.*?</tr>", rung_section(run), flags=re.S)
    refusals, tasks = (text_of(row).split() for row in rows[-2:])
    assert refusals[0] == "refusals"
    assert refusals[-1] == "+1.00"
    assert tasks[0] == "tasks"
    assert tasks[1] == "-1.00"


def test_a_beaten_trial_that_failed_was_not_scored(run):
    failed = [
        trial.model_copy(update={"state": "FAIL", "result": None, "reason": "crashed"})
        if trial.rival is not None and trial.state == "COMPLETE"
        else trial
        for trial in run.trials
    ]
    told = text_of(rung_section(synthetic.make_run(failed, spec=run.spec)))
    assert "None that was beaten there was scored" in told


def test_nothing_is_said_to_be_missed_where_nothing_was_beaten(run):
    trials = [trial.model_copy(update={"rival": None}) for trial in run.trials]
    free = synthetic.make_run([t for t in trials if t.state != "PRUNED"], spec=run.spec)
    assert "No candidate was beaten there." in text_of(rung_section(free))
    unseen = synthetic.make_run(trials, spec=run.spec)
    assert "what pruning missed is not known" in text_of(rung_section(unseen))


def test_the_rungs_time_and_sources_are_told(run):
    summary = summarize_timings(run)
    taken = [item for item in summary.candidates if item.split == "rung"]
    assert len(taken) == sum(trial.rung is not None for trial in run.trials)
    assert {item.total_s for item in taken} == {1.5}
    without = summarize_timings(
        synthetic.make_run([t.model_copy(update={"rung": None}) for t in run.trials])
    )
    assert summary.total_s == pytest.approx(without.total_s + 1.5 * len(taken))
    page = text_of(render_html(run))
    assert "Low rung: pairs whose losses prune, at level 0.05" in page
    assert "rung.refusals.0" in page


def test_a_model_card_says_what_was_pruned(run, published_folder):
    point = run.points[0].number
    assert "Candidates with higher losses than another on every pair set" in model_card(run, point)
    other = load_run(published_folder)
    assert "pair set" not in model_card(other, other.points[0].number)


def test_a_study_without_a_rung_says_nothing_of_it(published_folder):
    run = load_run(published_folder)
    assert rung_section(run) == ""
    page = text_of(render_html(run))
    assert "0 pruned" not in page
    assert "Low rung" not in page
