import pytest

from safemerge.training.measured import StageMeasures, measure_lines
from safemerge.training.sft import StepMetrics

SET = {"source": {"kind": "file", "path": "/data/rows.jsonl"}, "response": "{answer}"}
HARMFUL = {"data": [SET]}
UNTIL = {"refusal": 0.95, "prompts": [{"source": SET["source"]}]}


def seen(measures, *, losses, penalties, strength):
    for step, (loss, penalty) in enumerate(zip(losses, penalties, strict=True), start=1):
        measures.add(
            StepMetrics(step, loss, 1.0, 9, penalty=penalty, regularizer_strength=strength)
        )


def test_a_stage_that_went_by_its_file_alone_has_no_record(align, finetune):
    for spec in (align(), finetune()):
        measures = StageMeasures(spec)
        measures.add(StepMetrics(1, 0.5, 1.0, 9))
        assert measures.record(steps=20, refusal=None, num_asked=0) == {}
    assert measure_lines({}) == []


def test_a_measured_lambda_is_recorded_and_told(align):
    booster = {"alpha": 0.01, "calibrate": {"penalty_nats": 0.3}}
    measures = StageMeasures(align(method="booster", harmful=HARMFUL, booster=booster))
    seen(measures, losses=[8.0] + [0.5] * 10, penalties=[99.0] + [0.2] * 10, strength=6.0)
    found = measures.record(steps=20, refusal=None, num_asked=0)
    assert found == pytest.approx(
        {"penalty": 0.2, "alignment_loss": 0.5, "lambda": 6.0, "alpha": 0.01, "harmful_fall": 0.05}
    )
    assert measure_lines(found) == [
        "booster.lambda set to 6: the simulated step, alpha 0.01, lowers the harmful loss by 0.05 "
        "nats"
    ]


@pytest.mark.parametrize(
    ("penalty", "loss", "warned"), [(5.2, 2.0, True), (5.2, 6.0, False), (0.7, 0.05, False)]
)
def test_a_penalty_that_dwarfs_the_alignment_loss_is_warned_of(align, penalty, loss, warned):
    measures = StageMeasures(align(method="booster", harmful=HARMFUL))
    seen(measures, losses=[loss] * 3, penalties=[penalty] * 3, strength=5.0)
    told = measure_lines(measures.record(steps=20, refusal=None, num_asked=0))
    assert [line.startswith("warning: Booster's penalty, 5.2 nats") for line in told] == (
        [True] if warned else []
    )


@pytest.mark.parametrize(("refusal", "start"), [(0.96, "96.0% of 50"), (0.8, "warning: 80.0% of")])
def test_how_a_stage_ended_is_told(align, refusal, start):
    measures = StageMeasures(align(until=UNTIL))
    found = measures.record(steps=15, refusal=refusal, num_asked=50)
    (line,) = measure_lines(found)
    assert line.startswith(start)
    assert "after 15 of at most 20 steps" in line
    assert ("fewer than until.refusal 95.0%" in line) is (refusal < 0.95)
