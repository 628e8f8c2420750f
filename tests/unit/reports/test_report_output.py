"""Figures, tables, model card and timings of a run."""

import struct
import zlib

import pytest
import synthetic_run as synthetic
from huggingface_hub import ModelCard
from rich.console import Console

from safemerge.config.metric import metrics_of
from safemerge.errors import UserError
from safemerge.records import Timings
from safemerge.reports import (
    front_markdown,
    front_table,
    load_run,
    model_card,
    write_figures,
    write_report,
)
from safemerge.reports.metric import axes_of, safety_metrics
from safemerge.reports.panel import draw_parameters
from safemerge.reports.timing import summarize_timings
from safemerge.reports.wording import (
    coefficients,
    markdown,
    percent,
    points,
    recipe_text,
    seconds,
)

FIGURES = ("front.png", "hypervolume.png", "parameters.png", "timings.png")


def png_rows(content):
    """Decode enough of a PNG to tell a drawing from an empty sheet."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    place, packed, width = 8, b"", 0
    while place < len(content):
        (size,), kind = (
            struct.unpack(">I", content[place : place + 4]),
            content[place + 4 : place + 8],
        )
        body = content[place + 8 : place + 8 + size]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", body[:8])
        packed += body if kind == b"IDAT" else b""
        place += size + 12
    raw = zlib.decompress(packed)
    stride = len(raw) // height
    return width, {raw[row * stride : (row + 1) * stride] for row in range(height)}


@pytest.fixture(scope="module")
def run(published_folder):
    return load_run(published_folder)


def test_report_and_figures_are_written_and_nothing_global_changes(published_folder):
    import matplotlib as mpl

    before = dict(mpl.rcParams), mpl.get_backend()
    path = write_report(published_folder)
    assert path == published_folder / "report.html"
    assert path.stat().st_size > 50_000
    for name in FIGURES:
        width, rows = png_rows((published_folder / "figures" / name).read_bytes())
        assert width > 800
        assert len(rows) > 50
    assert (dict(mpl.rcParams), mpl.get_backend()) == before


@pytest.mark.parametrize("trials", [[], [synthetic.make_trial(0, None, state="FAIL")]])
def test_figures_of_empty_and_failed_runs_are_drawn(tmp_path, trials):
    paths = write_figures(synthetic.make_run(trials), tmp_path / "figures")
    assert [path.name for path in paths] == list(FIGURES)
    for path in paths:
        assert len(png_rows(path.read_bytes())[1]) > 5


def test_categorical_parameters_are_drawn():
    small = synthetic.Synthetic(counts={"search": 20, "report": 20})
    trials = [
        synthetic.make_trial(
            number,
            small.result(number, "search", skill=0.5, harm=0.2, refusal=0.1),
            params={"method.name": name, "method.normalize": name == "ties", "method.t": 0.1},
        )
        for number, name in enumerate(["ties", "linear", "ties"])
    ]
    figure = draw_parameters(synthetic.make_run(trials))
    labels = [axes.get_xlabel() for axes in figure.axes[:3]]
    assert labels == ["name", "normalize", "t"]
    assert figure.axes[0].collections[0].get_offsets().shape[0] + len(
        figure.axes[0].collections[1].get_offsets()
    ) == len(trials)


def test_rich_table_fits_a_terminal_and_has_knee_values_and_directions(run):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(front_table(run))
    text = console.export_text()
    assert f"trial {run.knee.number} [knee]" in text or f"(#{run.knee.number}) [knee]" in text
    for point in run.points:
        assert percent(point.report.value("skill"), unit=False) in text
    assert "(max)" in text
    assert "lower is better" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_markdown_table_has_a_row_for_every_point_and_as_many_cells_as_heads(run):
    lines = front_markdown(run).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    shown = {point.number for point in (*run.points, *run.references)}
    assert len(rows) == 2 + len(shown)
    assert len({row.count(" | ") for row in rows}) == 1
    skill = [float(row.split(" | ")[1].split()[0]) for row in rows[2 : 2 + len(run.points)]]
    assert skill == sorted(skill, reverse=True)


def test_model_card_of_the_knee_has_figures_recipe_digests_and_limits(run):
    card = model_card(run, run.knee.number)
    assert "library_name: transformers\n" in card
    found = run.knee.report.metrics["skill"]
    assert f"{percent(found.value)} [{percent(found.low, unit=False)}" in card
    for text in (
        run.knee.search.candidate,
        run.study_digest,
        "b" * 16,
        "It is the knee",
        "## Limits",
        "precision 0.61",
        "no proof of safety",
        f"seed {run.spec.seed}",
        "## Against the reference points",
        '"density"',
    ):
        assert text in card


def test_the_front_matter_is_the_hubs(run):
    data = ModelCard(model_card(run, run.knee.number)).data
    assert data.license == "unknown"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["merge", "safemerge", "ties"]
    assert data.model_name == f"demo, trial {run.knee.number}"
    (skill,) = [found for found in data.eval_results if found.metric_type == "skill"]
    wanted = run.knee.report.metrics["skill"]
    assert skill.metric_value == wanted.value
    assert (skill.metric_args["low"], skill.metric_args["high"]) == (wanted.low, wanted.high)
    assert skill.dataset_split == "report"
    (harm,) = [item for item in data.eval_results if item.metric_type == "harmful_score"]
    assert (harm.dataset_name, harm.dataset_type) == ("unsafe", "reviews")


def test_no_folder_of_this_machine_is_in_a_card(run):
    for point in run.points:
        card = model_card(run, point.number)
        assert "/models" not in card
        assert str(run.folder) not in card


def test_model_card_of_a_point_off_the_front_says_so(run):
    chosen = {point.number for point in (*run.points, *run.references)}
    number = next(
        trial.number for trial in run.trials if trial.feasible and trial.number not in chosen
    )
    card = model_card(run, number)
    assert "**It is not on the front:**" in card
    assert "**It was not evaluated on the report split.**" in card
    assert "report split |" not in card


def test_model_card_of_a_broken_trial_warns(run):
    assert "**It is broken:** broken: degenerate repetition" in model_card(run, 20)


@pytest.mark.parametrize(
    ("number", "message"), [(999, "no such trial; got 999"), (11, "trial 11 has no result")]
)
def test_a_card_needs_a_trial_with_a_result(run, number, message):
    with pytest.raises(UserError, match=message):
        model_card(run, number)


def test_timings_add_up_and_generating_is_a_share_of_the_work():
    small = synthetic.Synthetic(counts={"search": 20, "report": 20})
    rates = {"skill": 0.5, "harm": 0.2, "refusal": 0.1}
    clock = Timings(swap_s=1.0, generate_s=6.0, score_s=2.0, total_s=10.0)
    trials = [
        synthetic.make_trial(
            number,
            small.result(number, "search", **rates).model_copy(update={"timings": clock}),
        )
        for number in range(2)
    ]
    found = summarize_timings(synthetic.make_run(trials))
    assert found.seconds_by_part == {"swap": 2.0, "generate": 12.0, "score": 4.0, "other": 2.0}
    assert found.generating_share == pytest.approx(0.6)
    assert found.num_replicas == 2
    # From 04:00:00 to 04:01:41.5, on two replicas.
    assert found.search_span_s == pytest.approx(101.5)
    assert found.generating_share_of_span == pytest.approx(12 / 203)
    assert found.tokens_per_s == pytest.approx(2 * 20 * 80 / 12)


def test_untimed_runs_have_no_share():
    found = summarize_timings(synthetic.make_run([]))
    assert found.generating_share is found.search_span_s is found.tokens_per_s is None


def test_axes_and_safety_metrics_follow_the_objectives():
    spec = synthetic.make_spec()
    assert [item.name for item in axes_of(spec)] == ["skill", synthetic.HARM]
    assert [item.name for item in safety_metrics(spec)] == [synthetic.HARM]
    assert next(iter(metrics_of(spec))) == "skill"
    only = synthetic.make_spec(
        objectives=[{"metric": "skill", "direction": "maximize", "reference": 0.0}]
    )
    assert [item.name for item in axes_of(only)] == ["skill", synthetic.LIMIT]
    assert [item.name for item in safety_metrics(only)] == [synthetic.HARM]
    lower = synthetic.make_spec(
        objectives=[{"metric": synthetic.HARM, "direction": "minimize", "reference": 1.0}]
    )
    assert axes_of(lower)[1].name == synthetic.HARM
    assert axes_of(lower)[0].name != synthetic.HARM


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.832, "83.2\u00a0%"),
        (-0.05, "\u22125.0\u00a0%"),
        (-0.0001, "0.0\u00a0%"),
        (None, "not scored"),
    ],
)
def test_shares_are_told_in_percent(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.031, "+3.1"), (-0.12, "\u221212.0"), (0.0001, "0.0"), (None, "not scored")],
)
def test_differences_are_told_in_signed_points(value, text):
    assert points(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.62, "0.62 s"), (48.2, "48 s"), (750.0, "12 min 30 s"), (11100.0, "3 h 5 min")],
)
def test_durations_are_told_for_reading(value, text):
    assert seconds(value) == text


def test_recipes_are_flattened_with_layer_groups():
    recipe = {
        "method": {
            "name": "ties",
            "weights": {"math": {"early": 0.5, "default": 1}},
            "lambda": -0.25,
            "normalize": True,
            "models": ["a", "b"],
        }
    }
    assert coefficients(recipe) == [
        ("method", "ties"),
        ("weights.math.early", "0.5"),
        ("weights.math.default", "1"),
        ("lambda", "\u22120.25"),
        ("normalize", "True"),
        ("models", "a, b"),
    ]
    assert recipe_text(recipe).startswith("ties: math.early 0.5, ")
    assert recipe_text({}) == "unknown"


def test_markdown_names_cannot_break_out_of_a_cell():
    assert markdown("a|b\n[x](y) <i>") == "a\\|b [x]\\(y) \\<i\\>"
