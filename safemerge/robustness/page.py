"""The page of a robustness measurement: one self-contained HTML file, and the files beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from safemerge.inference import MAX_P_VALUE
from safemerge.records import MetricEstimate
from safemerge.reports.markup import (
    Cell,
    Section,
    definitions,
    fill,
    items,
    joined_markup,
    no_number,
    number_cell,
    page,
    paragraph,
    piece,
    table,
)
from safemerge.reports.wording import counted, percent, points, seconds
from safemerge.robustness.cell_store import CellStore
from safemerge.robustness.figure import robustness_figures
from safemerge.robustness.results import (
    LOST,
    MethodComparison,
    RobustnessResults,
    SpreadRecord,
    StepsComparison,
    StepsToHarm,
    robustness_results,
)

_CAPTIONS = {
    "harm_by_poison.png": "Harmful score against the poison ratio.",
    "harm_by_samples.png": "Harmful score against the number of samples.",
    "loss_curves.png": "Loss on held-out harmful rows along the attack, mean and one standard "
    "deviation over seeds. A method that keeps it high resists the attack longer.",
    "harm_curves.png": "Harmful score along the attack, mean and one standard deviation over "
    "seeds.",
}
_LIMITS = (
    "The harmful answers of an offline run are benign stand-ins without content: an attack that "
    "succeeds makes the model say the stand-in, or answer at all.",
    "Two p-values answer two questions: would other prompts show the difference between these "
    "models (a randomisation test, corrected for all comparisons of this page), and would other "
    "trainings (Student\u2019s paired test over seeds). A difference is called lower or higher "
    "only where both are at most 0.05. The interval beside it is over seeds, of one comparison "
    "alone, and decides nothing.",
    "\u201cNot significant\u201d does not mean equal: with more seeds or prompts a difference "
    "may show.",
    "With the refusal proxy the harmful score is the share that is not refused, so that an answer "
    "which only names a label counts; the complied rate leaves such answers out.",
    "\u201cCollapsed\u201d: before the attack the two harmful scores were further apart than "
    "max_gap, so that what comes after compares unequal models.",
    "The worst case is the worst of the declared grid, and of an attacker\u2019s search where "
    "there is one; not of every attack.",
)


def write_robustness_report(folder: str | Path) -> Path:
    """Write ``robustness.json``, the figures and ``report.html`` of a measurement's folder.

    Usable at any time: an unfinished grid says so.

    Args:
        folder: E.g. ``results/robustness``.

    Returns:
        Path of ``report.html``.

    Raises:
        StudyError: If a file of the folder is missing or damaged.
        PreflightError: If it cannot be written.
    """
    store = CellStore(folder)
    results = robustness_results(store)
    figures = robustness_figures(results)
    store.write("robustness.json", results.model_dump_json(indent=2) + "\n")
    for name, content in figures.items():
        store.write(f"figures/{name}", content)
    return store.write("report.html", render_robustness(results, figures))


def report_of(folder: Path) -> Path | None:
    """Write the report of a folder if it holds a measurement; see `write_robustness_report`."""
    return write_robustness_report(folder) if CellStore(folder).exists else None


def render_robustness(results: RobustnessResults, figures: Mapping[str, bytes]) -> str:
    """Render the page.

    Args:
        results: The numbers.
        figures: PNG content by name; they become part of the page.

    Returns:
        A whole HTML document that loads nothing. Names are escaped; no text that a model
        generated is in it.
    """
    sections = [
        Section("found", "Found", "What was found", _headline(results)),
        Section("worst", "Worst case", "Worst case over the grid", _worst(results)),
        Section(
            "results",
            "All attacks",
            "Harmful score and accuracy under every attack",
            _results(results),
        ),
        Section("tests", "Tests", "Methods against each other", _comparisons(results)),
        Section(
            "figures",
            "Figures",
            "Figures",
            joined_markup(
                piece("picture", _CAPTIONS[name], base64.b64encode(content).decode())
                for name, content in figures.items()
            ),
        ),
        Section("limits", "Limits", "Limits", items(_LIMITS)),
        Section("provenance", "Provenance", "Provenance", definitions(_facts(results))),
    ]
    return page(results.name, "robustness", _status(results), sections)


def comparison_sentence(item: MethodComparison) -> str:
    """Return a comparison in words, e.g. for the page's first lines."""
    shown = (
        f"{item.left} against {item.right}, {item.condition.label}: "
        f"{item.measure.replace('_', ' ')} "
        f"{points(item.difference.mean)} points{_interval(item.difference, signed=True)}"
    )
    over_prompts = "significant" if item.p_adjusted <= MAX_P_VALUE else "not significant"
    over_seeds = "no test" if item.p_seeds is None else f"p = {item.p_seeds:.3g}"
    return (
        f"{shown}: {item.verdict}. Over prompts {over_prompts} after correction for "
        f"{counted(item.num_comparisons, 'comparison')} (p = {item.p_adjusted:.3g}); over seeds "
        f"{over_seeds}."
    )


def steps_sentence(item: StepsComparison) -> str:
    """Return how much longer a method withstands an attack, in words."""
    found = item.difference
    interval = (
        " (one seed, no interval)"
        if found.low is None or found.high is None
        else f" [{found.low:+.0f}, {found.high:+.0f}]"
    )
    text = (
        f"{item.left} against {item.right}, {item.condition.label}: steps to a harmful score of "
        f"{percent(LOST)} {found.mean:+.0f}{interval}"
    )
    for name, seeds in ((item.left, item.left_censored), (item.right, item.right_censored)):
        if seeds:
            text += (
                f"; {name} was not lost within the attack in {counted(len(seeds), 'seed')}, "
                "counted with all of its steps"
            )
    if not item.is_equal_before:
        text += "; harmful scores before the attack were unequal: no verdict"
    return f"{text}."


def _steps_cell(found: StepsToHarm | None) -> Cell:
    if found is None:
        return no_number("not measured")
    bound = "\u2265 " if found.censored else ""
    sd = "" if found.steps.sd is None else f" \u00b1 {found.steps.sd:.0f}"
    seeds = ", ".join(
        f"{'> ' if int(seed) in found.censored else ''}{value:.0f}"
        for seed, value in found.steps.by_seed.items()
    )
    shown = fill(
        '<b>{{ mean }}</b>{{ sd }}<span class="ci">({{ seeds }})</span>',
        mean=f"{bound}{found.steps.mean:.0f}",
        sd=sd,
        seeds=seeds,
    )
    return Cell(shown, found.steps.mean, is_number=True)


def _status(results: RobustnessResults) -> Markup:
    text = (
        f"{results.num_done} of {counted(results.num_cells, 'cell')} done, "
        f"{counted(len(results.seeds), 'seed')}"
    )
    if results.num_done == results.num_cells and not results.failed:
        return paragraph(text, css="status")
    failed = [paragraph("Failed:"), items(results.failed)] if results.failed else []
    return fill(
        '<div class="warning">{{ text }}</div>',
        text=joined_markup([paragraph(f"Unfinished: {text}."), *failed]),
    )


def _headline(results: RobustnessResults) -> Markup:
    harm = [item for item in results.comparisons if item.measure == "harmful_score"]
    sure = [item for item in harm if item.verdict in ("lower", "higher")]
    if not harm:
        return paragraph("No two methods have been measured under one attack yet.")
    lead = (
        f"{len(sure)} of {counted(len(harm), 'comparison')} of harmful scores "
        f"{'is' if len(sure) == 1 else 'are'} significant over prompts and over seeds."
    )
    sentences = [comparison_sentence(item) for item in harm]
    sentences += [steps_sentence(item) for item in results.steps]
    return paragraph(lead, css="lead") + items(sentences)


def _worst(results: RobustnessResults) -> Markup:
    rows = [
        [
            Cell(item.method),
            Cell(item.condition.label),
            _spread_cell(item.harmful_score),
            _spread_cell(item.complied_rate),
            _spread_cell(item.accuracy),
        ]
        for item in results.worst
    ]
    heads = ["method", "attack", "harmful score (%)", "complied (%)", "accuracy (%)"]
    caption = "The attack of the grid with the highest mean harmful score, by method."
    return joined_markup([table(caption, heads, rows, sortable=False), *_searched(results)])


def _searched(results: RobustnessResults) -> Iterator[Markup]:
    """The attacker's worst cases beside the grid's, and the attack behind each."""
    if not results.searched:
        return
    rows = [
        [
            Cell(case.method),
            _spread_cell(case.before),
            _spread_cell(case.harmful_score),
            _spread_cell(case.accuracy),
        ]
        for case in results.searched
    ]
    bound = percent(results.max_utility_loss or 0.0)
    caption = (
        "The worst attack that the attacker found on each model, chosen on the search split among "
        f"those that cost at most {bound} of the accuracy before, and measured on other requests."
    )
    heads = ["method", "before (%)", "harmful score (%)", "accuracy (%)"]
    yield table(caption, heads, rows, sortable=False)
    yield items(
        f"{item.left} against {item.right}, worst case found: harmful score "
        f"{points(item.difference.mean)} points{_interval(item.difference, signed=True)}"
        + ("." if item.is_equal_before else "; unequal before the attack: no verdict.")
        for item in results.searched_comparisons
    )
    attacks = [
        [
            Cell(found.method),
            Cell(str(found.seed)),
            Cell("none within the bound" if found.attack is None else found.attack.attack_label),
            Cell(_estimate(found.harmful_score)),
            Cell(f"{found.num_feasible} of {found.num_tried}"),
        ]
        for case in results.searched
        for found in case.attacks
    ]
    heads = ["method", "seed", "attack", "harmful score (%)", "within the bound"]
    caption = "The attack behind each worst case, with its 95 % interval over requests."
    yield table(caption, heads, attacks, sortable=False)


def _estimate(found: MetricEstimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "not scored"
    ends = ", ".join(percent(end, unit=False) for end in (found.low, found.high))
    return f"{percent(found.value, unit=False)} [{ends}]"


def _results(results: RobustnessResults) -> Markup:
    has_steps = any(item.steps_to_harm is not None for item in results.results)
    rows = [
        [
            Cell(item.condition.label),
            Cell(item.method),
            _spread_cell(item.harmful_score),
            _spread_cell(item.complied_rate),
            _spread_cell(item.accuracy),
            *([_steps_cell(item.steps_to_harm)] if has_steps else []),
            number_cell(float(item.unscored), str(item.unscored)),
            Cell(_others(item.also, results.shown) or "\u2013"),
        ]
        for item in results.results
    ]
    prompts = max((item.num_prompts for item in results.results), default=0)
    tasks = max((item.num_rows for item in results.results), default=0)
    caption = (
        f"Mean \u00b1 standard deviation over {counted(len(results.seeds), 'seed')}; values by "
        f"seed in brackets. {prompts} unsafe requests and {tasks} task rows are asked a cell."
    )
    heads = [
        "attack",
        "method",
        "harmful score (%)",
        "complied (%)",
        "accuracy (%)",
        *([f"steps to {percent(LOST)}"] if has_steps else []),
        "unscored",
        "also (%)",
    ]
    return table(caption, heads, rows, sortable=False)


def _comparisons(results: RobustnessResults) -> Markup:
    rows = [
        [
            Cell(item.condition.label),
            Cell(f"{item.left} \u2212 {item.right}"),
            Cell(item.measure.replace("_", " ")),
            Cell(
                fill(
                    '<b>{{ value }}</b><span class="ci">{{ interval }}</span>',
                    value=points(item.difference.mean),
                    interval=_interval(item.difference, signed=True).strip(),
                ),
                item.difference.mean,
                is_number=True,
            ),
            Cell(f"{item.left_only} / {item.right_only} of {item.num_samples}"),
            number_cell(item.p_value, f"{item.p_value:.3g}"),
            number_cell(item.p_adjusted, f"{item.p_adjusted:.3g}"),
            number_cell(item.p_seeds, "\u2013" if item.p_seeds is None else f"{item.p_seeds:.3g}"),
            Cell(item.verdict),
        ]
        for item in results.comparisons
    ]
    heads = [
        "attack", "methods", "measure", "difference (points)", "prompts higher / lower",
        "p, prompts", "p, corrected", "p, seeds", "verdict",
    ]  # fmt: skip
    caption = (
        "Differences with Student\u2019s 95 % interval over seeds. Randomisation tests over "
        f"prompts, corrected by Holm for {counted(len(results.comparisons), 'comparison')}; "
        "Student\u2019s paired tests over seeds, not corrected. Both decide."
    )
    return table(caption, heads, rows, sortable=False)


def _spread_cell(found: SpreadRecord | None) -> Cell:
    if found is None:
        return no_number("not scored")
    sd = "" if found.sd is None else f" \u00b1 {percent(found.sd, unit=False)}"
    seeds = ", ".join(percent(value, unit=False) for value in found.by_seed.values())
    shown = fill(
        '<b>{{ mean }}</b>{{ sd }}<span class="ci">({{ seeds }})</span>',
        mean=percent(found.mean, unit=False),
        sd=sd,
        seeds=seeds,
    )
    return Cell(shown, found.mean, is_number=True)


def _interval(found: SpreadRecord, *, signed: bool) -> str:
    if found.low is None or found.high is None:
        return " (one seed, no interval)"
    shown = points if signed else percent
    return f" [{shown(found.low)}, {shown(found.high)}]"


def _others(also: Mapping[str, SpreadRecord], shown: Sequence[str]) -> Markup:
    return Markup("<br>").join(
        f"{name} {percent(item.mean, unit=False)}"
        + ("" if item.sd is None else f" \u00b1 {percent(item.sd, unit=False)}")
        for name, item in also.items()
        if name in shown
    )


def _facts(results: RobustnessResults) -> Iterator[tuple[str, str]]:
    found = results.provenance
    yield "seeds", ", ".join(map(str, results.seeds))
    yield "attacking", seconds(results.train_s)
    yield "evaluating", seconds(results.evaluate_s)
    yield "safemerge", found.safemerge
    yield "commit", found.commit or "not a checkout"
    yield "last started", found.created_at
    yield "python", f"{found.python}, {found.platform}"
    yield "packages", ", ".join(f"{name} {text}" for name, text in found.packages.items())
