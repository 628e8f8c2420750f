import multiprocessing
import os
import socket
import stat
import subprocess
import sys

import pytest

from safemerge.config.base import StrictModel
from safemerge.errors import ChangedRunError, PreflightError, RunFolderError, StudyError, UserError
from safemerge.run_folder import RecordFile, RunFolder


class Asked(StrictModel):
    """What was asked for."""

    format: int
    name: str


class Step(StrictModel):
    """A record."""

    number: int


class ToyFolder(RunFolder):
    """The folder of a toy."""

    document_file = "toy.json"
    noun = "toy"


@pytest.fixture
def run(tmp_path):
    return ToyFolder.under(str(tmp_path / "results"), "first")


class SecretFolder(ToyFolder):
    """The folder of a toy that writes text."""

    private = True


def test_a_private_folder_is_its_owners_alone_from_the_start_and_its_files_after(tmp_path):
    run = SecretFolder(tmp_path / "secret")
    with run.locked():
        assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
        run.write("deep/answers.jsonl", "text\n")
    for path in run.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    with ToyFolder(tmp_path / "open").locked():
        pass
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) & 0o077, "reports are for colleagues"


# --- lock -------------------------------------------------------------------------------


def _work(folder, ready, stop):
    with ToyFolder(folder).locked():
        ready.set()
        stop.wait(60)


def test_a_second_process_is_refused_until_the_first_is_killed(run):
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    other = context.Process(target=_work, args=(run.folder, ready, stop))
    other.start()
    assert ready.wait(60)
    owner = rf"process {other.pid} on {socket.gethostname()} since \d{{4}}-\d\d-\d\dT"
    with pytest.raises(RunFolderError, match=rf"is running this toy; got {owner}"), run.locked():
        pass
    other.kill()
    other.join(30)
    assert str(other.pid) in (run.folder / ".lock").read_text(), "it could not clean up"
    with run.locked():
        assert (run.folder / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_a_second_thread_of_the_process_is_refused_and_does_not_break_the_lock(run):
    with run.locked():
        with pytest.raises(UserError, match=f"got process {os.getpid()} on"), run.locked():
            pass
        with pytest.raises(UserError, match="Wait for it, or stop it"), run.locked():
            pass
    with run.locked():
        pass


def test_asking_who_works_in_the_folder_does_not_break_the_lock(run):
    assert run.owner() is None
    code = "import sys, safemerge.run_folder as at; print(at.RunFolder(sys.argv[1]).owner())"
    command = [sys.executable, "-c", code, str(run.folder)]
    with run.locked():
        owner = run.owner()
        assert owner.startswith(f"{os.getpid()} on {socket.gethostname()} since ")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == owner
    assert run.owner() is None


def test_an_emptied_folder_keeps_its_lock(run, tmp_path):
    (run.folder / "checkpoint_1").mkdir(parents=True)
    (run.folder / "metrics.jsonl").touch()
    (tmp_path / "elsewhere").mkdir()
    (run.folder / "link").symlink_to(tmp_path / "elsewhere")
    with run.locked():
        run.empty()
        assert [path.name for path in run.folder.iterdir()] == [".lock"]
        assert run.owner() is not None
    assert (tmp_path / "elsewhere").is_dir()


def test_the_lock_of_an_earlier_version_is_taken_over(run):
    run.folder.mkdir(parents=True)
    (run.folder / ".lock").write_text("12345\n")
    with run.locked():
        assert "since" in (run.folder / ".lock").read_text()


def test_a_run_in_use_is_not_set_aside(run):
    run.write("toy.json", "{}")
    with run.locked(), pytest.raises(RunFolderError, match="another process is running this toy"):
        run.set_aside()
    kept = run.set_aside()
    assert kept.name == "first.old-1"
    assert ToyFolder(kept).exists
    assert not run.exists


# --- documents --------------------------------------------------------------------------


def test_a_document_is_read_back_and_marks_the_folder(run):
    assert not run.exists
    asked = Asked(format=1, name="first")
    assert run.write_json(run.document_file, asked) == run.document_path
    assert run.exists
    assert run.read_document(Asked) == asked
    assert [path.name for path in run.folder.iterdir()] == ["toy.json"], "no temporary file stays"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, RunFolderError, r"toy\.json: no such toy\. Check the folder"),
        (b"{", StudyError, r"toy\.json: damaged"),
        (b"[]", StudyError, r"toy\.json: damaged"),
        (b"\xff\xfe", RunFolderError, r"toy\.json: cannot be read; got bytes that are no text"),
        (b'{"format": 2}', RunFolderError, r"format must be 1; got 2"),
        (b'{"format": 1}', StudyError, r"damaged at name; got 'Field required'"),
    ],
)
def test_a_document_that_cannot_be_used_is_named(run, content, error, message):
    if content is not None:
        run.write("toy.json", content)
    with pytest.raises(error, match=message):
        run.read_document(Asked)


def test_an_existing_run_is_not_written_over(run):
    run.refuse_existing(again="safemerge toy --resume")
    run.write("toy.json", "{}")
    words = r"holds a run of this toy already\. Continue it with `safemerge toy --resume`, remove"
    with pytest.raises(UserError, match=words):
        run.refuse_existing(again="safemerge toy --resume")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match="must be a folder; got a file"):
        ToyFolder(tmp_path / "file").write("toy.json", "{}")
    with pytest.raises(PreflightError, match=r"got a file, .*file"):
        ToyFolder(tmp_path / "file" / "run").check_disk()


def test_a_home_of_nobody_is_refused():
    with pytest.raises(PreflightError, match="unknown user in '~nobody-here/x'"):
        ToyFolder.under("~nobody-here/x", "toy")


# --- records ----------------------------------------------------------------------------


@pytest.fixture
def steps(run):
    run.write("toy.json", "{}")
    file = RecordFile(run.folder / "steps.jsonl", Step)
    for number in range(3):
        file.append(Step(number=number))
    return file


def again(steps, **more):
    return RecordFile(steps.path, Step, **more)


def test_records_are_read_back_in_their_order(steps):
    assert [step.number for step in again(steps).read()] == [0, 1, 2]
    assert again(steps).torn is None


def test_a_torn_record_is_moved_aside_and_written_again(steps):
    steps.path.write_bytes(steps.path.read_bytes() + b'{"numb')
    found = again(steps)
    found.restore()
    assert found.torn.line == 4
    assert found.torn.moved_to.read_bytes() == b'{"numb\n'
    found.append(Step(number=3))
    assert [step.number for step in found.read()] == [0, 1, 2, 3]


def test_edited_records_are_refused_with_the_advice_until_they_are_accepted(steps, run):
    steps.path.write_text(steps.path.read_text().replace("1", "7"))
    with pytest.raises(ChangedRunError, match=r"line 2: .*--accept-trials"):
        again(steps).read()
    with pytest.raises(ChangedRunError, match=r"line 2: .*\. Throw it away\."):
        again(steps, advice="Throw it away.").read()
    assert run.accept_records() == {steps.path: run.folder / "steps.digest.old-1"}
    assert [step.number for step in again(steps).read()] == [0, 7, 2]
    assert run.accept_records() == {}


def test_records_of_an_earlier_version_have_no_digests_and_get_them(steps, run):
    digests = run.folder / "steps.digest"
    digests.unlink()
    assert len(again(steps).read()) == 3
    steps.append(Step(number=3))
    assert len(digests.read_text().splitlines()) == 4


def test_removed_records_leave_nothing(steps, run):
    steps.remove()
    assert [path.name for path in run.folder.iterdir()] == ["toy.json"]
    assert steps.read() == []
