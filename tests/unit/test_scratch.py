"""What a killed process left behind is removed by the next one, and nothing of a living one."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
import ray
from ray._private import worker

from safemerge.distributed.cluster import ray_cluster
from safemerge.scratch import LOCK_FILE, owned, remove_abandoned, remove_marked, scratch_folder

OWNER = """
import sys, time
from safemerge.scratch import scratch_folder
with scratch_folder("tune") as folder:
    (folder / "trial").mkdir()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_scratch_folder_ends_with_its_block_also_after_an_error(temporary):
    def work():
        with scratch_folder("tune") as folder:
            (folder / "trial").mkdir()
            assert folder.parent == temporary
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not names(temporary)


def test_what_a_killed_process_left_goes_when_the_next_one_starts(temporary):
    (temporary / "safemerge-tune-of-something-else").mkdir()
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    left = owner.stdout.readline().strip()
    with scratch_folder("tune") as mine:
        assert {left, str(mine)} < {str(path) for path in temporary.iterdir()}
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert (temporary / left / "trial").is_dir()
    with scratch_folder("tune") as mine:
        assert names(temporary) == sorted([mine.name, "safemerge-tune-of-something-else"])


def test_links_and_what_has_no_mark_are_left_alone(tmp_path):
    for name in ("session_1", "session_2", "other"):
        (tmp_path / name).mkdir()
    for name in ("session_1", "other"):
        (tmp_path / name / LOCK_FILE).touch()
    (tmp_path / "session_latest").symlink_to(tmp_path / "session_1")
    with owned(tmp_path / "session_1"):
        remove_abandoned(tmp_path, "session_")
    assert names(tmp_path) == ["other", "session_1", "session_2", "session_latest"]
    remove_abandoned(tmp_path, "session_")
    assert names(tmp_path) == ["other", "session_2", "session_latest"]


def test_folders_of_other_users_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "session_1").mkdir()
    (tmp_path / "session_1" / LOCK_FILE).touch()
    with monkeypatch.context() as other:
        other.setattr(os, "geteuid", lambda: os.getuid() + 1)
        remove_abandoned(tmp_path, "session_")
    assert names(tmp_path) == ["session_1"]


def test_a_folder_is_never_marked_without_its_lock(tmp_path, monkeypatch):
    """Another process that looks just before the lock is taken."""
    lock = fcntl.flock

    def look_first(handle, how):
        if how == fcntl.LOCK_EX:
            remove_abandoned(tmp_path, "session_")
        lock(handle, how)

    (tmp_path / "session_1").mkdir()
    monkeypatch.setattr(fcntl, "flock", look_first)
    with owned(tmp_path / "session_1"):
        remove_abandoned(tmp_path, "session_")
        assert names(tmp_path / "session_1") == [LOCK_FILE]


def test_two_processes_may_remove_the_same_folder(tmp_path):
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / LOCK_FILE).touch()
    remove_marked(tmp_path / "gone")
    remove_marked(tmp_path / "gone")
    assert not names(tmp_path)


def test_what_cannot_be_removed_keeps_its_mark(tmp_path, monkeypatch):
    (tmp_path / "left" / "logs").mkdir(parents=True)
    (tmp_path / "left" / LOCK_FILE).touch()
    with monkeypatch.context() as busy:
        busy.setattr(shutil, "rmtree", lambda *_, **__: None)
        remove_marked(tmp_path / "left")
    assert names(tmp_path / "left") == ["logs", LOCK_FILE]
    remove_marked(tmp_path / "left")
    assert not names(tmp_path)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """The folder of a local cluster that has no processes."""
    folder = tmp_path / "session_now"
    (folder / "logs").mkdir(parents=True)
    (tmp_path / "session_killed").mkdir()
    (tmp_path / "session_killed" / LOCK_FILE).touch()
    node = SimpleNamespace(get_session_dir_path=lambda: str(folder), all_processes={})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: monkeypatch.setattr(worker, "_global_node", node))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return folder


@pytest.mark.parametrize(
    ("cause", "kept"), [(None, False), (KeyboardInterrupt, False), (RuntimeError, True)]
)
def test_a_local_cluster_leaves_its_logs_only_after_an_error(session, cause, kept):
    def work():
        with ray_cluster():
            assert names(session.parent) == ["session_now"]
            if cause is not None:
                raise cause

    if cause is None:
        work()
    else:
        with pytest.raises(cause):
            work()
    assert session.exists() == kept
    remove_abandoned(session.parent, "session_")
    assert not session.exists()
