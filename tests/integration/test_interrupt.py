"""Ctrl-C while a search runs, as a terminal sends it to a process group; and SIGTERM.

Its results are at a URL, and it ends on another machine, that is with another cache.
"""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from safemerge.cache import CACHE_VARIABLE
from safemerge.object_store import open_store
from safemerge.remote_run import RemoteRun
from safemerge.store import RunStore
from tests.integration.driving import PATIENCE, marked, own_processes, wait_until

pytestmark = pytest.mark.ray


SECRET = "a-secret-key-of-this-test"


def ctrl_c(driver):
    os.killpg(driver.pid, signal.SIGINT)


@pytest.fixture
def told(tmp_path):
    return lambda: (tmp_path / "told.txt").read_text()


def wait_for(text, told, driver):
    def ready():
        assert driver.poll() is None, told()
        return text in told()

    wait_until(ready, within_s=240)


@pytest.fixture
def results(tmp_path):
    """A URL of results; see `tests/unit/test_remote_run.py` for S3."""
    return f"file://{tmp_path}/my runs"


def check_no_secret_is_logged(pids):
    """Look through all that Ray wrote for a cluster, of which these are processes."""
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids]
    found = {path for text in commands for path in re.findall(r"/[^\0=]*/session_[\d_-]+", text)}
    assert len(found) == 1, found
    files = [path for path in Path(*found).rglob("*") if path.is_file()]
    texts = {path.name: path.read_bytes() for path in files}
    assert b"PL_DISABLE_FORK" in texts["runtime_env_agent.log"], "what Tune gives its actors"
    assert [name for name, text in texts.items() if SECRET.encode() in text] == []


def trials_at(results):
    return RunStore.open(RemoteRun(f"{results}/pico").fetch()).trials()


def test_ctrl_c_and_sigterm_keep_finished_trials_and_say_how_to_go_on(
    start_safemerge, safemerge, write_study, tmp_path, told, results
):
    study = write_study(num_trials=10)
    driver = start_safemerge(
        "search",
        study,
        "--results",
        results,
        SAFEMERGE_TEST_MARK=marked("ctrl-c"),
        AWS_SECRET_ACCESS_KEY=SECRET,
    )
    wait_for("[5/14]", told, driver)
    check_no_secret_is_logged(own_processes(marked("ctrl-c")))

    ctrl_c(driver)

    assert driver.wait(timeout=120 * PATIENCE) == 130
    kept = trials_at(results)
    assert 5 <= len(kept) < 14
    assert {record.state for record in kept} == {"COMPLETE"}
    again = f"safemerge search {study} --results '{results}' --resume"
    assert f"interrupted; {len(kept)} finished trials kept. Resume: {again}" in told()
    assert "Traceback" not in told()
    wait_until(lambda: not own_processes(marked("ctrl-c")), within_s=60)

    driver = start_safemerge(
        "search", study, "--results", results, "--resume", SAFEMERGE_TEST_MARK=marked("sigterm")
    )
    wait_for(f"[{len(kept) + 2}/14]", told, driver)

    driver.terminate()

    before = time.monotonic()
    assert driver.wait(timeout=120 * PATIENCE) == 143
    assert time.monotonic() - before < 10 * PATIENCE
    assert f"resuming: {len(kept)} finished trials kept" in told()
    kept = trials_at(results)
    finished = sum(record.state == "COMPLETE" for record in kept)
    assert f"interrupted; {finished} finished trials kept. Resume: {again}" in told()
    assert "ended by SIGTERM" in told()
    assert not [word for word in ("Traceback", "SIGTERM received", "PC: @") if word in told()]
    wait_until(lambda: not own_processes(marked("sigterm")), within_s=60)

    elsewhere = {CACHE_VARIABLE: str(tmp_path / "elsewhere")}
    done = safemerge("search", study, "--results", results, "--resume", **elsewhere)

    assert done.returncode == 0, done.stdout + done.stderr
    records = trials_at(results)
    assert records[: len(kept)] == kept
    complete = [record for record in records if record.state == "COMPLETE"]
    assert sum(record.role == "sampled" for record in complete) == 10
    assert sum(record.role == "reference" for record in complete) == 4
    page = open_store(f"{results}/pico").read("report.html").decode()
    assert f"safemerge export &#39;{results}/pico&#39; --pick" in page
    assert str(tmp_path / "elsewhere") not in page
    assert f"report: {results}/pico/report.html" in done.stdout
    told_status = safemerge("status", f"{results}/pico", **elsewhere)
    assert "pico: finished, 14 of 14 trials" in told_status.stdout
    recipe, best = tmp_path / "recipe.yaml", "best:reviews.accuracy"
    exported = safemerge("export", f"{results}/pico", "--pick", best, "--recipe", recipe)
    assert exported.returncode == 0, exported.stderr
    assert recipe.is_file()


def test_a_second_ctrl_c_ends_a_starting_search_at_once(
    start_safemerge, write_study, tmp_path, told
):
    driver = start_safemerge("search", write_study(), SAFEMERGE_TEST_MARK=marked("twice"))
    wait_for("starting 1 evaluator replicas", told, driver)
    time.sleep(2)

    ctrl_c(driver)
    time.sleep(0.5)
    ctrl_c(driver)

    before = time.monotonic()
    assert driver.wait(timeout=120 * PATIENCE) == 130
    assert time.monotonic() - before < 30 * PATIENCE
    assert "interrupted; 0 finished trials kept. Resume: safemerge search" in told()
    assert "Traceback" not in told()
    wait_until(lambda: not own_processes(marked("twice")), within_s=60)
