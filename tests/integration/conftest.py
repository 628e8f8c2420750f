"""A pico study whose whole line runs on the transformers engine in seconds."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

# Its settings come before any test imports Ray: a late call of Ray's must start no new cluster.
import safemerge.distributed
from tests.integration.driving import run_safemerge, write_study_to


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
    return lambda **changes: write_study_to(tmp_path, study_document | changes)


@pytest.fixture
def safemerge(tmp_path):
    """Run the command line in a subprocess, as a user does."""
    return lambda *arguments, **environment: run_safemerge(tmp_path, *arguments, **environment)


@pytest.fixture
def start_safemerge(tmp_path):
    """Start the command line in a process group of its own; what is left of it is killed."""
    started = []

    def start(*arguments, **environment):
        with (tmp_path / "told.txt").open("w") as told:
            driver = subprocess.Popen(
                [sys.executable, "-m", "safemerge.cli", *map(str, arguments)],
                stdout=told,
                stderr=told,
                cwd=tmp_path,
                env={**os.environ, **environment},
                start_new_session=True,
                # A shell that started the tests in the background ignores Ctrl-C for them.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        started.append(driver)
        return driver

    yield start
    for driver in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    if started:
        sys.stdout.write((tmp_path / "told.txt").read_text())  # Shown if the test fails.
