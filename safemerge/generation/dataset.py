"""Writing generated data: rows, a summary, and a data card; each file whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safemerge.files import disk_errors, replace_file
from safemerge.generation.record import GeneratedSample, SetSummary, Tally
from safemerge.generation.spec import GenerateSpec, WriterSpec
from safemerge.provenance import Provenance

COLUMNS = tuple(GeneratedSample.model_fields)
"""Columns of the data, all text."""


def write_samples(
    folder: Path, name: str, samples: Sequence[GeneratedSample], *, as_parquet: bool
) -> Path:
    """Write samples as JSON Lines, or as parquet through `datasets`.

    Args:
        folder: An existing folder.
        name: File name without its ending.
        samples: At least one.
        as_parquet: Whether to write parquet.

    Returns:
        The file, readable as a ``file`` source with columns ``prompt`` and ``response``.

    Raises:
        PreflightError: If the folder cannot be written, or the disk is full.
    """
    path = folder / f"{name}.{'parquet' if as_parquet else 'jsonl'}"
    rows = [sample.model_dump(mode="json") for sample in samples]
    with disk_errors(folder):
        if not as_parquet:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            replace_file(path, "".join(lines))
            return path
        import datasets

        features = datasets.Features({column: datasets.Value("string") for column in COLUMNS})
        partial = folder / f".{path.name}.{os.getpid()}.tmp"
        try:
            datasets.Dataset.from_list(rows, features=features).to_parquet(str(partial))
            replace_file(path, partial.read_bytes())
        finally:
            partial.unlink(missing_ok=True)
    return path


def summary_lines(name: str, summary: SetSummary) -> Iterator[str]:
    """Yield what became of a set, one line each, for people."""
    yield f"{name}: {summary.written} of {summary.wanted} samples"
    for who, tally in summary.questions.items():
        yield f"  questions by {who}: {_shown(tally)}"
    for who, tally in summary.answers.items():
        yield f"  answers by {who}: {_shown(tally)}"
    for reason, count in summary.dropped.items():
        yield f"  left out, {reason}: {count}"
    for who, count in summary.taken_from.items():
        yield f"  taken from {who}: {count}"


def _shown(tally: Tally) -> str:
    reasons = "".join(f", {reason} {count}" for reason, count in tally.dropped.items())
    return f"{tally.kept} of {tally.asked} kept{reasons}"


def data_card(
    spec: GenerateSpec,
    summaries: Mapping[str, SetSummary],
    *,
    files: Mapping[str, str],
    provenance: Provenance,
) -> str:
    """Return the README of the data, with the front matter that a model hub reads.

    Args:
        spec: Its models resolved to fingerprints; none of its paths is recorded.
        summaries: By set.
        files: File name by set.
        provenance: Of the run.
    """
    front = ["---", "configs:"]
    for name, file in files.items():
        front += [f"- config_name: {name}", f"  data_files: {file}"]
    front += ["tags: [synthetic, safety, safemerge]", "---"]
    lines = [
        *front,
        "",
        f"# {spec.name}",
        "",
        f"Written by `safemerge generate`, version {provenance.safemerge}"
        f"{f' ({provenance.commit})' if provenance.commit else ''}, on {provenance.created_at}, "
        f"with seed {spec.seed}. Every response is a model's own, decoded greedily.",
        "",
        f"Columns: {', '.join(f'`{column}`' for column in COLUMNS)}. A digest is the fingerprint "
        "of a model's weights.",
        "",
        "## Models",
        "",
        *[f"- `{ref.name}`: {ref.digest or 'no fingerprint'}" for ref in spec.models],
        "",
        "## Sets",
        "",
    ]
    if spec.safety is not None:
        judge = spec.safety.judge
        lines += [
            f"**safety** ({_questions(spec.safety.questions)}): unsafe questions, each with one "
            "refusal, drawn among the models that refused it; questions that no model refused are "
            f"left out. Refusals were marked by `{judge.name}`"
            + (
                ", the refusal detector, which reads an answer's opening and is no harm judge."
                if judge.kind == "refusal_proxy"
                else f" ({judge.kind})."
            ),
            "",
        ]
    if spec.experts is not None:
        for item in spec.experts.sets:
            lines += [
                f"**experts**, `{item.model}` ({_questions(item.questions)}): questions of its "
                "domain with its own answers, right or wrong.",
                "",
            ]
    lines += ["## Counts", "", "```"]
    for name, summary in summaries.items():
        lines += summary_lines(name, summary)
    lines += ["```", "", "## Use", "", "In an `align` or `finetune` file:", "", "```yaml"]
    lines += ["data:"]
    for file in files.values():
        lines += [f"  - source: {{kind: file, path: {file}}}", '    response: "{response}"']
    lines += [
        "```",
        "",
        "The questions of the safety set are unsafe requests. They are meant for training models "
        "to refuse them, and for measuring whether they do.",
        "",
    ]
    return "\n".join(lines)


def _questions(declared: object) -> str:
    if isinstance(declared, WriterSpec):
        shown = f", {declared.num_examples} examples shown" if declared.examples else ""
        return (
            f"questions sampled at temperature {declared.temperature:g}, top-p "
            f"{declared.top_p:g}{shown}"
        )
    return "questions of a data source"
