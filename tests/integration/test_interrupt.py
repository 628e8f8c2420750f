"""Ctrl-C while a search runs, as a terminal sends it to a process group; and SIGTERM."""

import os
import signal
import time

import pytest

from safemerge.store import RunStore
from tests.integration.driving import PATIENCE, marked, own_processes, wait_until

pytestmark = pytest.mark.ray


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


def test_ctrl_c_and_sigterm_keep_finished_trials_and_say_how_to_go_on(
    start_safemerge, safemerge, write_study, tmp_path, told
):
    study = write_study(num_trials=10)
    results = tmp_path / "my runs"
    driver = start_safemerge(
        "search", study, "--results", results, SAFEMERGE_TEST_MARK=marked("ctrl-c")
    )
    wait_for("[5/14]", told, driver)

    ctrl_c(driver)

    assert driver.wait(timeout=120 * PATIENCE) == 130
    kept = RunStore.open(results / "pico").trials()
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
    kept = RunStore.open(results / "pico").trials()
    finished = sum(record.state == "COMPLETE" for record in kept)
    assert f"interrupted; {finished} finished trials kept. Resume: {again}" in told()
    assert "ended by SIGTERM" in told()
    assert not [word for word in ("Traceback", "SIGTERM received", "PC: @") if word in told()]
    wait_until(lambda: not own_processes(marked("sigterm")), within_s=60)

    done = safemerge("search", study, "--results", results, "--resume")

    assert done.returncode == 0, done.stdout + done.stderr
    records = RunStore.open(results / "pico").trials()
    assert records[: len(kept)] == kept
    complete = [record for record in records if record.state == "COMPLETE"]
    assert sum(record.role == "sampled" for record in complete) == 10
    assert sum(record.role == "reference" for record in complete) == 4
    assert (results / "pico" / "report.html").is_file()


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
