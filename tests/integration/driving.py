"""Starting the command line as a user does, waiting for what it does, finding its processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

PATIENCE = float(os.environ.get("SAFEMERGE_TEST_PATIENCE", "3"))
"""Every limit on waiting is multiplied by it: a slow machine is no failure."""

VLLM_MARKS = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="vLLM runs on Linux"),
    # vLLM's own imports warn; nothing of ours does.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
"""Of test modules that start vLLM in their own process."""


def write_study_to(folder, document):
    """Write a study's document and return its path."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def run_safemerge(folder, *arguments, **environment):
    """Run the command line in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "safemerge.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300 * PATIENCE,
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
    )


def wait_until(ready, *, within_s, every_s=0.05, driver=None):
    """Wait for a condition, and return what it gave.

    Args:
        ready: The condition.
        within_s: Longest time, before `PATIENCE`.
        every_s: Time between looks.
        driver: A process without which it cannot come true.

    Raises:
        TimeoutError: If it does not come true.
        ChildProcessError: If the driver ends before.
    """
    deadline = time.monotonic() + within_s * PATIENCE
    while not (found := ready()):
        if driver is not None and driver.poll() is not None and not ready():
            raise ChildProcessError(f"ended early, with exit code {driver.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s * PATIENCE} s")
        time.sleep(every_s)
    return found


def marked(name: str) -> str:
    """A `SAFEMERGE_TEST_MARK` that no other run of the tests has."""
    return f"{name}-{os.getpid()}"


def own_processes(mark: str) -> list[int]:
    """Pids of living processes that were started with this `SAFEMERGE_TEST_MARK`."""
    wanted = f"SAFEMERGE_TEST_MARK={mark}\0".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            environment = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if wanted in environment + b"\0" and state != "Z":
            found.append(int(folder.name))
    return found


def own_workers(mark: str) -> list[int]:
    """The same without Ray's agents, which notice a killed driver after a minute only."""
    return [pid for pid in own_processes(mark) if not _is_agent(pid)]


def _is_agent(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True  # gone by now
    return command.startswith((b"ray::DashboardAgent", b"ray::RuntimeEnvAgent"))
