"""A pico study whose whole line runs on the transformers engine in seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def study_document(tiny_base, tiny_experts, tmp_path_factory):
    """A study over pico models as a plain document; every suite is local."""
    folder = tmp_path_factory.mktemp("prompts")
    for split in ("search", "report"):
        rows = [
            {"prompt": f"{split} question number {i}", "answer": ("yes", "no")[i % 2]}
            for i in range(8)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")

    def questions(split):
        source = {"kind": "file", "path": str(folder / f"{split}.jsonl")}
        return {"source": source, "label": "answer"}

    def reviews(split):
        source = {"kind": "generator", "name": "reviews", "split": split, "count": 8}
        return {"source": source, "label": "label"}

    names = list(tiny_experts)
    return {
        "name": "pico",
        "base": {"name": "base", "path": str(tiny_base)},
        "experts": [{"name": name, "path": str(path)} for name, path in tiny_experts.items()],
        "spaces": [
            {
                "name": "ta",
                "method": {"name": "task_arithmetic", "weights": dict.fromkeys(names, 0.5)},
                "vary": {f"method.weights.{name}": {"low": 0.0, "high": 1.0} for name in names},
            }
        ],
        "suites": [
            {
                "name": "reviews",
                "task": {"kind": "classification", "labels": ["positive", "negative"]},
                "search": reviews("search"),
                "report": reviews("report"),
            },
            {
                # No open questions: a random pico model repeats itself, and would be broken.
                "name": "questions",
                "task": {"kind": "classification", "labels": ["yes", "no"]},
                "search": questions("search"),
                "report": questions("report"),
            },
        ],
        "objectives": [
            {"metric": "reviews.accuracy", "direction": "maximize", "reference": 0.0},
            {"metric": "questions.accuracy", "direction": "maximize", "reference": 0.0},
        ],
        "num_trials": 4,
        "sampler": {"name": "tpe", "startup": 2},
        "evaluator": {"engine": "transformers", "cpus_per_replica": 0.5, "max_model_len": 256},
    }


@pytest.fixture
def write_study(study_document, tmp_path):
    """Write the pico study, with changes, and return its path."""

    def write(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study_document | changes), encoding="utf-8")
        return path

    return write


@pytest.fixture
def safemerge(tmp_path):
    """Run the command line in a subprocess, as a user does."""

    def run(*arguments, timeout=300, **environment):
        return subprocess.run(
            [sys.executable, "-m", "safemerge.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env={**os.environ, **environment},
            check=False,
        )

    return run


def own_processes(marker: str) -> list[int]:
    """Pids of living processes whose environment carries a marker variable's value."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            environment = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if marker.encode() in environment and state != "Z":
            found.append(int(folder.name))
    return found
