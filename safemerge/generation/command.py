"""``safemerge generate`` and `safemerge.generate`: samples from the models of a pool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safemerge.api.declared import StrPath, declared
from safemerge.api.prepare import check_engine, check_judges
from safemerge.api.progress import Progress, Say
from safemerge.commands.console import Console, resume_command
from safemerge.generation.spec import GenerateSpec
from safemerge.provenance import Provenance, current_provenance
from safemerge.run_folder import RunFolder

if TYPE_CHECKING:
    import argparse

    from safemerge.generation.pipeline import Generation
    from safemerge.generation.record import SetSummary


class DataFolder(RunFolder):
    """The folder of generated data."""

    document_file = "generate.json"
    noun = "data"
    private = True


class GeneratedData(NamedTuple):
    """Data that the models of a pool wrote."""

    files: dict[str, Path]
    """Data file by set: ``safety``, ``experts``."""
    summaries: dict[str, SetSummary]
    """What was asked, kept and left out, by set."""
    folder: Path
    """The run's folder, with ``summary.json`` and a data card."""


def generate(
    generation: StrPath | Mapping[str, Any],
    *,
    results: StrPath = "results",
    resume: bool = False,
    progress: Say | None = None,
    again: str = "safemerge.generate(..., resume=True)",
) -> GeneratedData:
    """Write refusals and domain samples with the models of a pool.

    Args:
        generation: A file (``safemerge schema generate``), or its keys as a mapping.
        results: Folder of run folders.
        resume: Continue the run in the folder, if there is one; whatever was asked is kept.
        progress: Called with lines of progress, e.g. `print`; the log if left out.
        again: How the run is continued, for messages.

    Raises:
        UserError: If declaration, questions, models or judge are wrong, or the folder holds a run
            and `resume` is not given.
        EngineError: If an engine failed.
    """
    lines = Progress(progress)
    spec = declared(generation, GenerateSpec, kind="generate")
    store = DataFolder.under(results, spec.name)
    if not resume:
        store.refuse_existing(again=again)
    store.check_disk()
    check_engine(spec.evaluator)

    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.ingredient import Ingredients
    from safemerge.generation.on_ray import Generator
    from safemerge.generation.pipeline import Generation
    from safemerge.generation.pool import chat_formats, model_groups
    from safemerge.generation.question import check_questions

    check_questions(spec)
    check_judges([spec.safety.judge] if spec.safety is not None else [])
    if all(ref.path is not None for ref in spec.models):
        model_groups(spec.models)
        chat_formats(spec.models, spec.chat)
    try:
        with ray_cluster():
            ingredients = Ingredients(say=lines.say, on_step=lines.training_step)
            spec = spec.with_checkpoints(ingredients.resolve(spec.models))
            groups = model_groups(spec.models)
            provenance = current_provenance()
            with store.locked():
                store.write_json(
                    store.document_file,
                    {"config": spec.resolved(), "provenance": provenance.resolved()},
                )
                engines = " and ".join(", ".join(ref.name for ref in group) for group in groups)
                lines.say(f"pool: {engines} ({len(groups)} engines, one at a time)")
                with Generator(spec, app=f"safemerge-generate-{spec.name}") as generator:
                    stages = Generation(
                        spec, store.folder / "stages", generator.work, progress=lines.count
                    )
                    return _write(spec, stages, store, provenance)
    except KeyboardInterrupt:
        lines.say(f"interrupted; what was asked is kept. Resume: {again}")
        raise


def run(options: argparse.Namespace) -> None:
    """Write questions, answers and the draw; leave data, a summary and a data card."""
    from safemerge.generation.dataset import summary_lines

    console = Console()
    made = generate(
        options.spec,
        results=options.results,
        resume=options.resume,
        progress=console.say,
        again=resume_command("generate", options.spec, options.results),
    )
    for name, summary in made.summaries.items():
        for line in summary_lines(name, summary):
            console.plain(line)
    for path in made.files.values():
        console.say(f"data: {path}")
    console.say(next_step(next(iter(made.files.values()))))


def _write(
    spec: GenerateSpec,
    generation: Generation,
    store: DataFolder,
    provenance: Provenance,
) -> GeneratedData:
    from safemerge.generation.dataset import data_card, write_samples

    summaries: dict[str, SetSummary] = {}
    samples = {}
    if spec.safety is not None:
        samples["safety"], summaries["safety"] = generation.safety()
    if spec.experts is not None:
        samples["experts"], summaries["experts"] = generation.experts()
    # All stages are done: data, summary and card belong together.
    files = {
        name: write_samples(store.folder, name, rows, as_parquet=spec.format == "parquet")
        for name, rows in samples.items()
    }
    names = {name: path.name for name, path in files.items()}
    card = data_card(spec, summaries, files=names, provenance=provenance)
    store.write_json("summary.json", {name: item.resolved() for name, item in summaries.items()})
    store.write("README.md", card)
    return GeneratedData(files, summaries, store.folder)


def next_step(data: Path) -> str:
    """Return how a data file is named in a training file, wherever that one lies."""
    source = json.dumps(str(data.resolve()), ensure_ascii=False)
    return (
        "next: name a file in an align or finetune file, "
        f'`source: {{kind: file, path: {source}}}` with `response: "{{response}}"`'
    )
