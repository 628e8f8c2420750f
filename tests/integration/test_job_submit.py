"""`ray job submit --working-dir .` from this repository, as cluster/README.md tells it."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from safemerge.store import RunStore
from tests.integration.driving import PATIENCE, marked, own_processes, wait_until

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MARK = marked("job-submit")


def free_ports(count):
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def environment():
    """What a user sets, on the head and where the job is submitted."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    return kept | {
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


@pytest.fixture(scope="module")
def head(environment, tmp_path_factory):
    """A head of our own: its dashboard's address and its folder."""
    gcs, dashboard, client, agent = free_ports(4)
    # Ray's sockets lie below; a socket's path may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    cache = tmp_path_factory.mktemp("cache")
    own = {"SAFEMERGE_TEST_MARK": MARK, "SAFEMERGE_CACHE": str(cache)}
    command = [
        BIN / "ray", "start", "--head", "--block", f"--temp-dir={folder}", "--num-cpus=2",
        "--object-store-memory=100000000", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats",
    ]  # fmt: skip
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            env=environment | own,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        token = environment["RAY_AUTH_TOKEN"]
        wait_until(lambda: answers(address, token), within_s=180, every_s=0.5)
        yield address, folder
    finally:
        while pids := own_processes(MARK):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def answers(address, token):
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


def submit(address, environment, *entrypoint):
    return subprocess.run(
        [BIN / "ray", "job", "submit", "--working-dir", ".", "--", *map(str, entrypoint)],
        cwd=ROOT,
        env=environment | {"RAY_API_SERVER_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=400 * PATIENCE,
        check=False,
    )


def test_a_search_runs_as_a_job_from_the_repository(head, environment, write_study, tmp_path):
    address, _ = head
    results = tmp_path / "shared" / "results"

    done = submit(address, environment, "safemerge", "search", write_study(), "--results", results)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"report: {results / 'pico' / 'report.html'}" in done.stdout
    assert (results / "pico" / "report.html").is_file()
    records = RunStore.open(results / "pico").trials()
    complete = [record for record in records if record.state == "COMPLETE"]
    assert sum(record.role == "sampled" for record in complete) == 4
    assert RunStore.open(results / "pico").read_front() is not None


def test_the_uploaded_package_is_small_runs_and_finds_the_shipped_studies(head, environment):
    address, folder = head
    where = "import pathlib, safemerge; print('runs', pathlib.Path(safemerge.__file__).parent)"

    done = submit(
        address, environment, "bash", "-c",
        f'safemerge validate search_spaces/demo.yaml && python -P -c "{where}"',
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "search_spaces/demo.yaml" in done.stdout
    [uploaded] = folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert f"runs {uploaded / 'safemerge'}" in done.stdout
    assert not {".git", ".venv", "results"} & {path.name for path in uploaded.iterdir()}
    assert sum(path.stat().st_size for path in uploaded.rglob("*")) < 20e6


def test_a_job_without_the_token_is_refused(head, environment):
    address, _ = head
    bare = {k: v for k, v in environment.items() if not k.startswith("RAY_AUTH")}

    done = submit(address, bare | {"HOME": "/nonexistent"}, "safemerge", "--version")

    assert done.returncode != 0
    assert "Missing authentication token" in done.stdout + done.stderr
