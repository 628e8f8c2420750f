"""A run at a URL: stored as it grows, continued elsewhere, never by two at once."""

import hashlib
import importlib.util
import json
import shutil
import socket
import subprocess
import threading
import time
import uuid

import pytest

from safemerge import remote_run
from safemerge.cache import CACHE_VARIABLE
from safemerge.errors import ChangedRunError, ObjectStoreError, RunFolderError, StudyError
from safemerge.object_store import FolderStore, open_store
from safemerge.records import TrialRecord
from safemerge.remote_run import RemoteRun, remote_runs
from safemerge.search import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import landscape_study


def trial(number):
    return TrialRecord(
        number=number, role="sampled", label=f"trial {number}", state="FAIL", recipe={},
        candidate=str(number), reason="of a test",
    )  # fmt: skip


class Machine:
    """A machine is a cache folder: nothing else of a run stays on one."""

    def __init__(self, monkeypatch, folder):
        self._monkeypatch, self._folder, self.said = monkeypatch, folder, []

    def run(self, url):
        self._monkeypatch.setenv(CACHE_VARIABLE, str(self._folder))
        return RemoteRun(url)

    def drive(self, url):
        return self.run(url).driven(self.said.append)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    def machine(name):
        return Machine(monkeypatch, tmp_path / name)

    monkeypatch.setattr(remote_run, "SYNC_EVERY_S", 0.05)
    monkeypatch.setattr(remote_run, "BEAT_EVERY_S", 0.1)
    monkeypatch.setattr(remote_run, "STALE_S", 0.8)
    return machine


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/bucket/results/toy"


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory):
    """The settings of a local S3 server, where moto[server] and safemerge[s3] are installed."""
    if importlib.util.find_spec("s3fs") is None or shutil.which("moto_server") is None:
        pytest.skip("needs s3fs and moto_server (pip install 'safemerge[s3]' 'moto[server]')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log.txt"
    with log.open("w") as out:
        command = ["moto_server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 120
        while not answers(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "of-a-test",
            "AWS_SECRET_ACCESS_KEY": "of-a-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["file", "s3"])
def any_url(request, monkeypatch, url):
    """The URL of a run in a folder, and in a bucket of its own of an S3 server."""
    if request.param == "file":
        return url
    for name, value in request.getfixturevalue("s3_server").items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex}"
    open_store(f"s3://{bucket}")._filesystem.mkdir(bucket)
    return f"s3://{bucket}/results/toy"


def begin(folder, count=2):
    store = RunStore(folder).create(landscape_study("toy", num_trials=9), rows={})
    for number in range(count):
        store.append(trial(number))
    return store


def await_stored(url, wanted):
    """Wait until the journal holds so many trials."""
    until = time.monotonic() + 30
    while stored_trials(url) != wanted:
        assert time.monotonic() < until, f"{stored_trials(url)} trials stored"
        time.sleep(0.02)


def stored_trials(url):
    return RemoteRun(url).state().lines.get("trials.jsonl", b"").count(b"\n")


def test_another_machine_continues_by_the_url_alone_with_the_chain_whole(machine, any_url):
    with machine("one").drive(any_url) as folder:
        begin(folder)
    with machine("two").drive(any_url) as folder:
        store = RunStore.open(folder)
        assert [item.number for item in store.trials()] == [0, 1]
        assert store.place == any_url
        assert store.study().study == "toy"
        assert store.asked() == {}
        store.append(trial(2))
    read = machine("three").run(any_url).fetch()
    assert [item.number for item in RunStore(read).trials()] == [0, 1, 2]


def test_records_are_stored_while_the_run_goes_on_and_only_what_is_new(machine, url, tmp_path):
    with machine("one").drive(url) as folder:
        store = begin(folder, count=1)
        await_stored(url, 1)
        store.append(trial(1))
        await_stored(url, 2)
        entries = sorted((tmp_path / "bucket/results/toy/journal").iterdir())
        last = json.loads(entries[-1].read_text())
        added = {item["file"]: item["text"].count("\n") for item in last["lines"]}
        assert added["trials.jsonl"] == 1, "the first trial is not sent again"
        assert RemoteRun(url).living_owner() is not None
    assert RemoteRun(url).living_owner() is None


def test_what_people_look_at_lies_beside_the_journal_as_it_is(machine, url, tmp_path):
    with machine("one").drive(url) as folder:
        store = begin(folder)
        store.write("report.html", "<p>drawn</p>")
        store.write("study.db", "of this machine")
        store.log("a line")
    place = tmp_path / "bucket/results/toy"
    assert (place / "trials.jsonl").read_bytes() == store.trials_path.read_bytes()
    assert (place / "report.html").read_text() == "<p>drawn</p>"
    assert "a line" in (place / "log.txt").read_text()
    assert not (place / "study.db").exists(), "Optuna's storage is made again from the trials"
    assert remote_runs(url.rpartition("/")[0]) == [url]


def test_a_second_driver_is_refused_while_the_first_gives_signs_of_life(machine, any_url):
    with machine("one").drive(any_url) as folder:
        begin(folder)
        second = machine("two")
        with pytest.raises(
            RunFolderError, match=f"{any_url}: another process is running this study"
        ):
            second.drive(any_url).__enter__()
        assert "waiting up to 0.8 s for a sign of life" in second.said[0]
        RunStore(folder).append(trial(2))
    assert stored_trials(any_url) == 3, "the first one lost nothing by it"


def test_a_dead_drivers_run_is_taken_over_and_the_dead_one_cannot_come_back(
    machine, any_url, monkeypatch
):
    first = machine("one")
    frozen = threading.Event()
    loop = remote_run._Driver._loop
    monkeypatch.setattr(remote_run._Driver, "_loop", lambda self: frozen.wait(60))
    with pytest.raises(RunFolderError, match="took the run over; got process"):  # noqa: PT012, SIM117
        with first.drive(any_url) as folder:
            begin(folder)
            monkeypatch.setattr(remote_run._Driver, "_loop", loop)
            second = machine("two")
            with second.drive(any_url) as other:
                assert "gave no sign of life: its run is taken over" in second.said[1]
                begin(other, count=1)
            frozen.set()
    assert stored_trials(any_url) == 1, "not a line of the one that came back"
    again = machine("one")
    with again.drive(any_url) as folder:
        assert [item.number for item in RunStore.open(folder).trials()] == [0]
    assert "has other records than" in again.said[0], "what it had is kept beside"


def test_a_driver_that_lost_its_run_is_interrupted_as_by_ctrl_c(machine, url):
    with pytest.raises(RunFolderError, match="took the run over"):  # noqa: PT012, SIM117
        with machine("one").drive(url) as folder:
            begin(folder)
            await_stored(url, 2)
            store, number = FolderStore(url), RemoteRun(url).state().next
            other = {"format": 1, "driver": "other", "owner": "7 on elsewhere"}
            while not store.create(f"journal/{number:08d}.json", json.dumps(other).encode()):
                number += 1
            with pytest.raises(KeyboardInterrupt):
                time.sleep(30)
            raise KeyboardInterrupt


def test_a_killed_driver_of_the_same_machine_is_followed_at_once(machine, url, monkeypatch):
    monkeypatch.setattr(remote_run, "STALE_S", 3600)
    one = machine("one")
    with pytest.raises(SystemError), monkeypatch.context() as patch:  # noqa: PT012
        patch.setattr(remote_run._Driver, "_finish", lambda self, failed: None)
        with one.drive(url) as folder:
            store = begin(folder)
            await_stored(url, 2)
            raise SystemError("killed")
    store.append(trial(2))  # on disk, and not stored: it was killed before
    with one.drive(url) as folder:
        assert [item.number for item in RunStore.open(folder).trials()] == [0, 1, 2]
        await_stored(url, 3)


def test_an_outage_is_said_once_and_what_waited_is_stored_after_it(machine, url, monkeypatch):
    one = machine("one")
    with one.drive(url) as folder:
        store = begin(folder, count=1)
        await_stored(url, 1)
        create = FolderStore.create

        def refuse(self, name, content):
            raise ObjectStoreError(f"{self.url}: no network.")

        monkeypatch.setattr(FolderStore, "create", refuse)
        store.append(trial(1))
        time.sleep(0.5)
        monkeypatch.setattr(FolderStore, "create", create)
        await_stored(url, 2)
        time.sleep(0.2)
    assert [said.partition(":")[0] for said in one.said] == ["note", "file"]
    assert "no network" in one.said[0]
    assert "all results are stored" in one.said[1]


def test_an_outage_at_the_end_fails_and_the_same_machine_stores_it_later(
    machine, url, monkeypatch
):
    one = machine("one")
    monkeypatch.setattr(remote_run, "SYNC_EVERY_S", 60)

    def refuse(self, name, content):
        raise ObjectStoreError(f"{self.url}: no network.")

    with (  # noqa: PT012
        monkeypatch.context() as patch,
        pytest.raises(ObjectStoreError, match="on this machine, with --resume"),
        one.drive(url) as folder,
    ):
        begin(folder)
        patch.setattr(FolderStore, "create", refuse)
    assert stored_trials(url) == 0
    with one.drive(url) as folder:
        assert len(RunStore.open(folder).trials()) == 2
    assert stored_trials(url) == 2


def test_a_run_that_was_lost_behind_an_outage_at_the_end_is_no_success(machine, url, monkeypatch):
    monkeypatch.setattr(remote_run, "SYNC_EVERY_S", 60)
    monkeypatch.setattr(remote_run.time, "sleep", lambda _: None)
    create, tries = FolderStore.create, []

    def refuse_then_lose(self, name, content):
        tries.append(name)
        if len(tries) < remote_run.FINAL_TRIES:
            raise ObjectStoreError(f"{self.url}: no network.")
        other = {"format": 1, "driver": "other", "owner": "7 on elsewhere"}
        create(self, name, json.dumps(other).encode())
        return create(self, name, content)

    with pytest.raises(RunFolderError, match="took the run over"):  # noqa: PT012, SIM117
        with machine("one").drive(url) as folder:
            begin(folder)
            monkeypatch.setattr(FolderStore, "create", refuse_then_lose)
    assert len(tries) == remote_run.FINAL_TRIES


def test_what_is_in_flight_travels_to_the_next_machine(machine, url, monkeypatch):
    with pytest.raises(SystemError), monkeypatch.context() as patch:  # noqa: PT012
        patch.setattr(remote_run._Driver, "_finish", lambda self, failed: None)
        with machine("one").drive(url) as folder:
            spec = landscape_study("toy", num_trials=9, references=False)
            with SearchStudy(spec, RunStore(folder).create(spec, rows={})) as study:
                lost = study.ask()
                asked = hashlib.sha256((folder / "in_flight.json").read_bytes()).hexdigest()
                until = time.monotonic() + 30
                while RemoteRun(url).state().documents.get("in_flight.json") != asked:
                    assert time.monotonic() < until
                    time.sleep(0.02)
            raise SystemError("killed")
    with machine("two").drive(url) as folder:
        store = RunStore.open(folder)
        with SearchStudy(store.study().config, store) as study:
            assert study.interrupted == (lost.number,)


def test_what_was_removed_is_gone_on_the_next_machine_and_may_come_back(machine, url):
    one, two = machine("one"), machine("two")
    with one.drive(url) as folder:
        begin(folder)
        (folder / "in_flight.json").write_text("{}")
    with one.drive(url) as folder:
        (folder / "in_flight.json").unlink()
    with two.drive(url) as folder:
        assert not (folder / "in_flight.json").exists()
        (folder / "in_flight.json").write_text("{}")
    with one.drive(url) as folder:
        assert (folder / "in_flight.json").read_text() == "{}"
    with two.drive(url) as folder:
        (folder / "in_flight.json").unlink()
    with one.drive(url) as folder:
        assert not (folder / "in_flight.json").exists()
        assert [item.number for item in RunStore.open(folder).trials()] == [0, 1]


def test_a_driver_killed_while_it_fetches_leaves_the_folder_as_it_was(machine, url, monkeypatch):
    one = machine("one")
    with one.drive(url) as folder:
        begin(folder)
        (folder / "study.db").write_text("of this machine")
    with machine("two").drive(url) as other:
        RunStore.open(other).append(trial(2))
    write, names = remote_run._write, []

    def killed(folder, name, content):
        names.append(name)
        if name.endswith(".jsonl"):
            raise SystemError("killed")
        write(folder, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(remote_run, "_write", killed)
        with pytest.raises(SystemError), one.drive(url):
            pass
    assert "study.json" in names
    assert [item.number for item in RunStore.open(folder).trials()] == [0, 1]
    with one.drive(url):
        assert [item.number for item in RunStore.open(folder).trials()] == [0, 1, 2]
        assert (folder / "study.db").read_text() == "of this machine"


@pytest.mark.parametrize("tries", [1, remote_run.FINAL_TRIES])
def test_a_file_that_cannot_be_read_at_the_end_is_tried_again_then_one_message(
    machine, url, monkeypatch, tries
):
    monkeypatch.setattr(remote_run, "SYNC_EVERY_S", 60)
    monkeypatch.setattr(remote_run.time, "sleep", lambda _: None)
    files, failed = remote_run._files, []

    def refuse(folder):
        if len(failed) < tries:
            failed.append(folder)
            raise PermissionError(13, "Permission denied", str(folder / "front.json"))
        return files(folder)

    def drive():
        with machine("one").drive(url) as folder:
            begin(folder)
            monkeypatch.setattr(remote_run, "_files", refuse)

    if tries == 1:
        drive()
    else:
        with pytest.raises(ObjectStoreError, match=r"front\.json.*on this machine, with --resume"):
            drive()
    assert stored_trials(url) == (2 if tries == 1 else 0)


def test_reading_a_journal_copies_each_line_once(url, monkeypatch):
    """With every entry that adds, what is there already stays where it is."""
    run, state = RemoteRun(url), remote_run.State()
    added = {"file": "trials.jsonl", "text": "x" * 99 + "\n"}
    seen = set()
    for number in range(50):
        lines = [added | {"offset": 100 * number}]
        entry = remote_run.Entry(format=1, driver="d", owner="o", lines=lines)
        run._replay(state, entry)
        seen.add(id(state.lines["trials.jsonl"]))
    assert len(seen) == 1
    assert len(state.lines["trials.jsonl"]) == 5000


def test_a_lost_answer_of_the_store_is_no_other_driver(machine, url, monkeypatch):
    create, answers = FolderStore.create, []

    def lose(self, name, content):
        created = create(self, name, content)
        answers.append(created)
        if len(answers) == 3:
            raise ObjectStoreError(f"{self.url}: the connection broke.")
        return created

    monkeypatch.setattr(FolderStore, "create", lose)
    with machine("one").drive(url) as folder:
        store = begin(folder, count=1)
        await_stored(url, 1)
        for number in range(1, 6):
            store.append(trial(number))
            time.sleep(0.1)
    assert len(answers) > 3
    read = RunStore(machine("two").run(url).fetch())
    assert [item.number for item in read.trials()] == list(range(6))


def test_lines_accepted_after_an_edit_replace_those_that_were_stored(machine, url):
    one = machine("one")
    with one.drive(url) as folder:
        begin(folder, count=3)
    with one.drive(url) as folder:
        path = folder / "trials.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
        with pytest.raises(ChangedRunError):
            RunStore(folder).trials()
        RunStore(folder).accept_records()
    read = RunStore(machine("two").run(url).fetch())
    assert [item.number for item in read.trials()] == [0, 1]


def test_an_edited_entry_of_the_journal_is_noticed(machine, url, tmp_path):
    with machine("one").drive(url) as folder:
        begin(folder)
    for path in sorted((tmp_path / "bucket/results/toy/journal").iterdir()):
        path.write_text(path.read_text().replace("of a test", "of a cheat"))
    with pytest.raises(ChangedRunError, match="line 1: must be as it was written"):
        RunStore(machine("two").run(url).fetch()).trials()


def test_a_missing_entry_or_study_is_named(machine, url, tmp_path):
    place = tmp_path / "bucket/results/toy"
    with machine("one").drive(url) as folder:
        begin(folder)
    study = (place / "study.json").read_bytes()
    (place / "study.json").write_text("{}")
    with pytest.raises(ChangedRunError, match=r"toy/study.json: must be as it was.*another cont"):
        machine("two").run(url).fetch()
    (place / "study.json").write_bytes(study)
    (place / "journal/00000000.json").unlink()
    with pytest.raises(StudyError, match=r"got no journal/00000000.json of"):
        machine("two").run(url).fetch()
    shutil.rmtree(place)
    with pytest.raises(RunFolderError, match=f"{url}: no run there"):
        machine("two").run(url).fetch()


def test_a_run_that_was_removed_at_the_url_does_not_come_back(machine, url, tmp_path):
    one = machine("one")
    with one.drive(url) as folder:
        begin(folder)
    shutil.rmtree(tmp_path / "bucket")
    with one.drive(url) as folder:
        assert not RunStore(folder).exists
    assert "kept, not used" in one.said[0]


def test_a_store_that_cannot_tell_two_drivers_apart_is_refused(machine, url, monkeypatch):
    def replace(self, name, content):
        self.put(name, content)
        return True

    monkeypatch.setattr(FolderStore, "create", replace)
    with pytest.raises(ObjectStoreError, match=r"got journal/00000000\.json created twice"):
        machine("one").drive(url).__enter__()


def test_a_bucket_that_is_not_there_is_one_error_of_the_user(s3_server, machine, monkeypatch):
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ObjectStoreError, match=r"s3://none-there/toy: .*bucket does not exist"):
        machine("one").drive("s3://none-there/toy").__enter__()
