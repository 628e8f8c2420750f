import os
import signal
import subprocess
import sys

import pytest

from safemerge.errors import PreflightError
from safemerge.merge.folder import whole_folder

WRITER = """
import sys, time
from pathlib import Path
from safemerge.merge.folder import whole_folder

with whole_folder(Path(sys.argv[1]), num_bytes=1) as folder:
    (folder / "weights").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer():
    """Start a process that has half a folder written; it is killed at the end."""
    started = []

    def start(out):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def write(out, text="whole"):
    with whole_folder(out, num_bytes=1) as folder:
        (folder / "weights").write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path, writer, by):
    process = writer(tmp_path / "out")
    os.kill(process.pid, by)
    process.wait()
    assert not (tmp_path / "out").exists()
    left = names(tmp_path)
    assert left
    write(tmp_path / "other")
    assert names(tmp_path) == sorted([*left, "other"])
    write(tmp_path / "out")
    assert names(tmp_path) == ["other", "out"]
    assert names(tmp_path / "out") == ["weights"]


def test_what_a_living_process_writes_is_left_alone(tmp_path, writer):
    writer(tmp_path / "out")
    (partial,) = (path for path in tmp_path.iterdir() if path.is_dir())
    write(tmp_path / "out")
    assert (partial / "weights").read_text() == "half"
    assert (tmp_path / "out" / "weights").read_text() == "whole"


def test_a_folder_of_this_process_number_from_another_machine_is_not_in_the_way(tmp_path):
    (tmp_path / f".out.partial-{os.getpid()}").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_text() == "whole"


def interrupted(out):
    with whole_folder(out, num_bytes=1) as folder:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt


def test_after_an_interrupt_nothing_is_left(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "deep" / "out")
    assert names(tmp_path / "deep") == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="must be a place that can be written"):
        write(tmp_path / "file" / "out")


def test_the_folder_may_be_read_by_whom_the_umask_lets(tmp_path):
    (tmp_path / "plain").mkdir()
    write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
