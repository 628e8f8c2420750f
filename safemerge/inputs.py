"""Digests of the files that a study reads, without loading what is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from safemerge.config.base import DIGEST_LENGTH, digest
from safemerge.config.inputs import ABSENT, SCORING_VERSION, StudyInputs, input_changes
from safemerge.config.judge import ModelJudge
from safemerge.config.source import FileSource, Source
from safemerge.config.study import StudySpec
from safemerge.config.suite import LmEval
from safemerge.errors import ChangedRunError

_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "vocab.json",
    "vocab.txt",
)
_TEMPLATE = "chat_template"
_NO_MEANING = ("_commit_hash", "_from_model_config", "name_or_path", "transformers_version")
"""Keys of JSON files that say where or by what they were written."""
_TASK_FILES = (".json", ".jsonl", ".py", ".yaml", ".yml")


def file_inputs(spec: StudySpec) -> StudyInputs:
    """Digest the data files of a study and the text files of its models; no weights are read.

    What is not there, or not a file, is left out: whoever reads it says so.

    Args:
        spec: The study, located; checkpoints without a folder are left out.

    Returns:
        The inputs without rows, tasks and judges' weights.
    """
    files = {
        place: found for place, path in _data_files(spec) if (found := _content(path)) is not None
    }
    folders = {ref.name: ref.path for ref in spec.checkpoints}
    for suite in spec.suites:
        for judge in suite.judges:
            if isinstance(judge, ModelJudge):
                folders[f"judges.{judge.name}"] = judge.path
    models = {
        f"{name}.{part}": found
        for name, path in folders.items()
        if path is not None
        for part, found in text_digests(Path(path)).items()
    }
    return StudyInputs(scoring=SCORING_VERSION, files=files, models=models)


def text_digests(folder: Path) -> dict[str, str]:
    """Digest what says how a model in a folder is asked and where its answers end.

    JSON settings count by value. A chat template counts as what is used, whichever file holds it.

    Args:
        folder: A checkpoint's folder.

    Returns:
        Digests of ``chat_template``, ``tokenizer`` and ``generation_config``; empty if there is
        no such folder.
    """
    if not folder.is_dir():
        return {}
    settings = _json(folder / "tokenizer_config.json") or {}
    own = settings.pop(_TEMPLATE, None)
    template = _content(folder / "chat_template.jinja")
    if template is None:
        text = (_json(folder / "chat_template.json") or {}).get(_TEMPLATE, own)
        if text is not None:
            template = _sha256(text.encode()) if isinstance(text, str) else digest(text)
    more = {
        path.name: _content(path)
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    }
    tokenizer = {name: _content(folder / name) for name in _TOKENIZER_FILES}
    found = {name: value for name, value in tokenizer.items() if value is not None}
    generation = _json(folder / "generation_config.json")
    return {
        _TEMPLATE: (digest([template, more]) if more else template) or ABSENT,
        "tokenizer": digest([found, settings]) if found or settings else ABSENT,
        "generation_config": ABSENT if generation is None else digest(generation),
    }


def check_texts(spec: StudySpec) -> None:
    """Refuse models whose template, tokenizer or generation_config changed since a run began.

    For what starts or starts again in the middle of a run; a study without `StudySpec.inputs`
    passes.

    Raises:
        ChangedRunError: If so; names the model and the part.
    """
    if spec.inputs is None:
        return
    changes = input_changes(spec.inputs, file_inputs(spec))
    texts = [str(change) for change in changes if change.kind == "models"]
    if texts:
        raise ChangedRunError(
            f"study '{spec.name}': models must be as when the run began; got {', '.join(texts)}. "
            "Put it back as it was, then resume."
        )


def _data_files(spec: StudySpec) -> Iterator[tuple[str, Path]]:
    for suite in spec.suites:
        place = f"suites.{suite.name}"
        sources: list[tuple[str, Source | None]] = [
            (f"{place}.search", suite.search.source),
            (f"{place}.report", suite.report.source),
        ]
        if suite.few_shot is not None:
            sources.append((f"{place}.search.few_shot", suite.few_shot.source))
        yield from ((at, Path(one.path)) for at, one in sources if isinstance(one, FileSource))
        if isinstance(suite.task, LmEval) and suite.task.include_path is not None:
            yield f"{place}.task", Path(suite.task.include_path)
    for at, data in (spec.rung.prompt_sets if spec.rung is not None else {}).items():
        if isinstance(data.source, FileSource):
            yield at, Path(data.source.path)


def _content(path: Path) -> str | None:
    """Digest of a file, or of the task files in a folder; None if it cannot be read."""
    try:
        if path.is_dir():
            names = sorted(item for item in path.rglob("*") if item.suffix in _TASK_FILES)
            return digest([[str(item.relative_to(path)), _content(item)] for item in names])
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGEST_LENGTH]
    except (OSError, ValueError):
        return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]


def _json(path: Path) -> dict[str, object] | None:
    """A JSON object without what has no meaning; one that cannot be read, by its bytes."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return {"": _sha256(content)}
    return {key: value for key, value in document.items() if key not in _NO_MEANING}
