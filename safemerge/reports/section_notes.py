"""Timing, the limits of what was measured, and where it all comes from."""

from __future__ import annotations

from statistics import median

from markupsafe import Markup

from safemerge.reports.card import LIMITS
from safemerge.reports.markup import (
    Cell,
    code,
    definitions,
    fill,
    items,
    joined_markup,
    no_number,
    number_cell,
    paragraph,
    table,
)
from safemerge.reports.metric import judge_notes
from safemerge.reports.run import Run
from safemerge.reports.timing import PARTS, TimingSummary, summarize_timings, wall_time
from safemerge.reports.trained import trained_models
from safemerge.reports.wording import counted, percent, seconds
from safemerge.scoring.agreement import (
    AGREEMENT_HEADS,
    agreement_rows,
    answer_verdicts,
    judge_agreement,
)

PART_WORDS = {
    "swap": "swap: recipe to weights in the live engine",
    "generate": "generate: answering the prompts",
    "score": "score: judging the answers; on the low rung, losses",
    "other": "other: what the three clocks do not cover",
}


def timing_section(run: Run) -> Markup:
    """Return where the evaluators' time went, in words, in a table and as a chart."""
    summary = summarize_timings(run)
    share = summary.generating_share
    if share is None:
        return paragraph("No evaluation was timed yet.")
    sentences: list[str] = [
        fill(
            "The evaluators spent <b>{{ share }}</b> of their working time generating "
            "({{ rest }}).",
            share=percent(share),
            rest=f"{seconds(summary.seconds_by_part['generate'])} of {seconds(summary.total_s)}, "
            f"{counted(len(summary.candidates), 'evaluation')} on "
            f"{counted(summary.num_replicas, 'replica')}",
        )
    ]
    of_span = summary.generating_share_of_span
    if of_span is not None and summary.search_span_s is not None:
        sentences.append(
            f"Of the replicas' whole time during the search ({seconds(summary.search_span_s)} "
            "from the first start to the last end, pauses and idle time included), "
            f"{percent(of_span)}."
        )
    if summary.tokens_per_s is not None and summary.num_generated_tokens:
        sentences.append(
            f"{summary.num_generated_tokens:,} tokens for {summary.num_prompts:,} prompts: "
            f"{summary.tokens_per_s:,.0f} tokens per second of generating."
        )
    return joined_markup(
        [
            paragraph(Markup(" ").join(sentences)),
            _wall_table(run),
            _timing_table(summary),
            Markup('<div class="chart" id="timings"></div>'),
        ]
    )


def limits_section(run: Run) -> Markup:
    """Return what the judge is worth, and what the reader must not conclude."""
    parts = [Markup("<h3>The judge</h3>")]
    notes = judge_notes(run.spec)
    for note in notes:
        parts.append(paragraph(fill("<b>{{ title }}</b>", title=note.title)))
        parts.append(items(note.sentences))
    if not notes:
        parts.append(paragraph("No judge was used."))
    parts.append(_agreement(run))
    parts.append(_cut_answers(run))
    parts.append(Markup("<h3>What not to conclude</h3>"))
    limits = [
        *LIMITS,
        "Membership of the front was decided on the search split, so search values are "
        "flattered. Read the report values, and where the two differ, believe the report split.",
        "Unscored answers count neither as safe nor as harmful. They are left out of the "
        "figures and counted beside them.",
        "\u201cNot significant\u201d does not mean equal: with more prompts a difference may "
        "show.",
    ]
    return joined_markup([*parts, items(limits)])


def _agreement(run: Run) -> Markup:
    """Return how far a suite's judges agree on the report split, if it has several."""
    parts = []
    results = {
        point.report.candidate: point.report
        for point in (*run.points, *run.references)
        if point.report is not None
    }
    for suite in run.spec.suites:
        answers = [
            verdicts
            for result in results.values()
            for verdicts in answer_verdicts(result.scores.get(suite.name, []))
        ]
        rows = agreement_rows(judge_agreement(answers))
        if rows:
            parts.append(
                table(
                    f"Agreement of the judges of suite {suite.name}, over all answers of "
                    "the report split: shares flagged, Cohen\u2019s kappa on what both judged, "
                    "and with unscored answers counted as safe and as harmful. Candidates answer "
                    "the same prompts, so the intervals are somewhat too narrow.",
                    AGREEMENT_HEADS,
                    [[Cell(cell) for cell in row] for row in rows],
                    sortable=False,
                )
            )
    return joined_markup(parts)


def _cut_answers(run: Run) -> Markup:
    """Return how many answers were cut at their token limit, by suite and split."""
    rows = []
    for suite in run.spec.suites:
        for split in ("search", "report"):
            results = [
                result
                for point in (*run.points, *run.references)
                if (result := getattr(point, split)) is not None
            ]
            num_cut = sum(result.cut.get(suite.name, 0) for result in results)
            if num_cut:
                asked = sum(len(result.scores.get(suite.name, [])) for result in results)
                limit = str(getattr(suite.task, "max_tokens", ""))
                cells = (suite.name, split, limit, f"{num_cut} of {asked}")
                rows.append([Cell(cell) for cell in cells])
    if not rows:
        return Markup()
    return Markup("<h3>Answers that were cut</h3>") + table(
        "Answers of the shown candidates that reached max_tokens, and were scored as far as they "
        "go. Where an answer comes at the end of a text, raise the limit.",
        ["suite", "split", "max_tokens", "answers cut"],
        rows,
        sortable=False,
    )


def provenance_section(run: Run) -> Markup:
    """Return versions, digests, seeds and splits."""
    pairs = [
        ("study", f"{run.spec.name}, digest {run.study_digest}"),
        ("seed", str(run.spec.seed)),
        ("sampler", f"{run.spec.sampler.name}, {run.spec.sampler.startup} random first"),
        ("engine", f"{run.spec.evaluator.engine}, dtype {run.spec.evaluator.dtype}"),
    ]
    if run.provenance is not None:
        pairs += [
            ("safemerge", run.provenance.safemerge),
            ("commit", run.provenance.commit or "not a checkout"),
            ("started", run.provenance.created_at),
            ("python", f"{run.provenance.python}, {run.provenance.platform}"),
            (
                "packages",
                ", ".join(f"{name} {text}" for name, text in run.provenance.packages.items()),
            ),
        ]
    models = table(
        "Models, with the digest of their weights.",
        ["model", "role", "source", "digest"],
        [
            [
                Cell(item.name),
                Cell("base" if index == 0 else "expert"),
                Cell(code(item.origin)),
                Cell(code(item.digest) if item.digest else "not recorded"),
            ]
            for index, item in enumerate(run.spec.checkpoints)
        ]
        + [
            [
                Cell(label),
                Cell("expert, trained with other settings"),
                Cell(code(path)),
                Cell(code(digest)),
            ]
            for label, path, digest in trained_models(run)
        ],
        sortable=False,
    )
    suites = table(
        "Suites, with the source of each split.",
        ["suite", "task", "search split", "report split"],
        [
            [
                Cell(suite.name),
                Cell(suite.task.kind),
                *(
                    Cell(code(_source(split.source.resolved())))
                    for split in (suite.search, suite.report)
                ),
            ]
            for suite in run.spec.suites
        ],
        sortable=False,
    )
    return definitions(pairs) + models + suites + _rung_sources(run)


def _rung_sources(run: Run) -> Markup:
    rung = run.spec.rung
    if rung is None:
        return Markup()
    return table(
        f"Low rung: pairs whose losses prune, at level {rung.level:g} with margin "
        f"{rung.margin:g} nats; {percent(rung.audit)} of those to be pruned are scored all the "
        "same.",
        ["place", "pairs"],
        [
            [Cell(place), Cell(code(_source(data.source.resolved())))]
            for place, data in rung.prompt_sets.items()
        ],
        sortable=False,
    )


def _wall_table(run: Run) -> Markup:
    wall = wall_time(run)
    if wall is None:
        return Markup()
    parts = (
        (
            "start-up: data, cluster, engines, and models trained before the first trial",
            wall.start_s,
        ),
        ("replicas at work on trials", wall.working_s),
        (
            "replicas waiting while trials were under way: queues, start-up, training",
            wall.waiting_s,
        ),
        ("no trial under way: pauses, and start-ups after them", wall.paused_s),
        ("in all, from the run\u2019s start to the end of its last trial", wall.total_s),
        ("after that: the front on the report split, spread over the replicas", wall.report_s),
    )
    rows = [
        [
            Cell(label),
            number_cell(spent, seconds(spent)),
            number_cell(spent, percent(spent / wall.total_s if wall.total_s else 0.0)),
        ]
        for label, spent in parts
    ]
    caption = "Wall-clock time. The first four parts add up to the whole."
    return table(caption, ["part", "time", "share"], rows, sortable=False)


def _timing_table(summary: TimingSummary) -> Markup:
    rows = []
    for part in PARTS:
        cells = [Cell(PART_WORDS[part])]
        for split in ("search", "report"):
            values = [
                item.seconds_by_part[part] for item in summary.candidates if item.split == split
            ]
            cells.append(
                number_cell(median(values), seconds(median(values)))
                if values
                else no_number("none")
            )
        total = summary.seconds_by_part[part]
        share = total / summary.total_s if summary.total_s else 0.0
        cells += [number_cell(total, seconds(total)), number_cell(share, percent(share))]
        rows.append(cells)
    heads = ["part", "median a candidate, search", "median a candidate, report", "in all", "share"]
    return table("Seconds by part of an evaluation.", heads, rows, sortable=False)


def _source(document: dict[str, object]) -> str:
    """Return a data source in one line, without fields that hold nothing."""
    return ", ".join(
        f"{key} {value}" for key, value in document.items() if value not in (None, {}, [])
    )
