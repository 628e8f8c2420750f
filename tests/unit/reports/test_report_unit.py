"""A metric that is no share, such as a perplexity, is told as it is, wherever it stands."""

import json

import pytest
import synthetic_run as synthetic
from rich.console import Console

from safemerge.config.study import StudySpec
from safemerge.records import MetricEstimate
from safemerge.reports import front_markdown, front_table, model_card, render_html
from safemerge.reports.figure import draw_front, draw_parameters
from safemerge.reports.wording import amount, change

PERPLEXITY = "prose.word_perplexity"


def with_perplexity(trial):
    """The same trial, scored on prose as well: 10 words and a tenth for each trial before it."""
    if trial.result is None:
        return trial
    value = 10 + trial.number / 10
    found = MetricEstimate(
        metric=PERPLEXITY,
        value=value,
        low=value - 1.5,
        high=value + 2.5,
        n=60,
        direction="minimize",
        unit="number",
    )
    metrics = {**trial.result.metrics, PERPLEXITY: found}
    objectives = {**trial.objectives, PERPLEXITY: value}
    violations = {**trial.violations, PERPLEXITY: value - 30}
    result = trial.result.model_copy(update={"metrics": metrics})
    return trial.model_copy(
        update={"result": result, "objectives": objectives, "violations": violations}
    )


@pytest.fixture(scope="module")
def run():
    document = synthetic.study_document()
    source = {"kind": "lm_eval", "start": 0, "stop": 60}
    document["suites"].append(
        {
            "name": "prose",
            "lm_eval": {"task": "wikitext", "metrics": {"word_perplexity": "minimize"}},
            "search": {"source": source},
            "report": {"source": {"kind": "lm_eval", "start": 60, "stop": 120}},
        }
    )
    # First: the figures' skill axis is a maximised objective, their harm axis this one.
    document["objectives"] = [
        document["objectives"][0],
        {"metric": PERPLEXITY, "direction": "minimize", "reference": 40.0},
    ]
    document["constraints"].append({"metric": PERPLEXITY, "budget": 30.0})
    spec = StudySpec.model_validate_json(json.dumps(document))
    trials = list(map(with_perplexity, synthetic.make_trials(12)[0]))
    return synthetic.make_run(trials, spec=spec)


def test_the_terminal_and_markdown_tables_say_it_as_it_is(run):
    with open("/dev/null", "w") as nowhere:
        console = Console(width=100, record=True, file=nowhere)
        console.print(front_table(run))
    for text in (console.export_text(), front_markdown(run)):
        assert "10.1" in text
        assert "[8.6, 12.6]" in text
        assert "1010" not in text
        assert "1,010" not in text
    head = front_markdown(run).splitlines()[0]
    assert f"{PERPLEXITY} (min)" in head
    assert "skill % (max)" in head


def test_the_page_and_its_charts_say_it_as_it_is(run):
    page = render_html(run)
    assert "1010.0" not in page
    assert '"scale":1.0' in page
    assert '"scale":100.0' in page
    assert "prose.word_perplexity 40" in page.replace("<wbr>", ""), "the corner of the volume"
    assert '"budget":30.0' in page, "its limit"


def test_the_card_says_it_as_it_is(run):
    trial = next(item for item in run.trials if item.result and item.role == "sampled")
    card = model_card(run, trial.number)
    value = f"{10 + trial.number / 10:.4g}"
    assert f"| {PERPLEXITY} (objective) | {value} [" in card


def test_figures_draw_it_as_it_is(run):
    front = draw_front(run)
    (axes,) = front.axes
    assert "%" in axes.get_xlabel()
    assert "%" not in axes.get_ylabel()
    assert axes.get_ylim()[1] < 100
    rows = draw_parameters(run).axes
    assert any(plot.get_ylabel() == PERPLEXITY for plot in rows)


@pytest.mark.parametrize(
    ("value", "unit", "told", "over"),
    [
        (0.125, "share", "12.5\u00a0%", "+12.5"),
        (12.3456, "number", "12.35", "+12.35"),
        (-0.5, "number", "\u22120.5", "\u22120.5"),
        (0.0, "number", "0", "0"),
    ],
)
def test_amounts_and_excesses_by_unit(value, unit, told, over):
    assert amount(value, unit) == told
    assert change(value, unit) == over
