"""What is asked of a store: one winner of several creators, whole replacement, clear errors."""

import threading

import fsspec
import pytest

from safemerge.errors import ObjectStoreError, PreflightError
from safemerge.object_store import FilesystemStore, is_url, open_store


@pytest.fixture(params=["file", "fsspec"])
def store(request, tmp_path):
    """A real folder, and a file system of fsspec's with the same call that S3's has."""
    if request.param == "file":
        return open_store(f"file://{tmp_path}/objects")
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    filesystem.store.clear()
    return FilesystemStore("memory://objects", filesystem)


def test_of_many_that_create_one_object_one_wins_and_its_content_is_there(store):
    won = []
    barrier = threading.Barrier(8)

    def create(number):
        barrier.wait()
        if store.create("journal/0.json", f"{number}".encode() * 1000):
            won.append(number)

    if isinstance(store, FilesystemStore):
        won = [number for number in range(8) if store.create("journal/0.json", b"%d" % number)]
        assert won == [0], "fsspec's memory is not made for threads"
        return
    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("journal/0.json") == f"{won[0]}".encode() * 1000
    assert store.names("journal") == ["0.json"], "nothing temporary is left"


def test_objects_are_replaced_read_and_listed(store):
    assert store.read("a/b.json") is None
    assert store.names("a") == []
    store.put("a/b.json", b"1")
    store.put("a/b.json", b"2")
    store.put("a/c.json", b"3")
    assert store.read("a/b.json") == b"2"
    assert store.names("a") == ["b.json", "c.json"]
    assert store.names("") == ["a"]
    found = store.read_all(["a/c.json", "a/b.json", "a/none"])
    assert found == {"a/b.json": b"2", "a/c.json": b"3"}
    assert store.read_all([]) == {}


def test_a_folder_that_cannot_be_written_is_one_error_of_the_place(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = open_store(f"file://{tmp_path}/file/objects")
    with pytest.raises(ObjectStoreError, match=f"file://{tmp_path}/file/objects: must be a fold"):
        store.put("a", b"1")


def test_whatever_a_providers_client_raises_is_one_error_without_traceback():
    class Refusing:
        def cat_file(self, path):
            raise RuntimeError(f"no credentials for {path}\nat line 3")

    store = FilesystemStore("s3://bucket/run", Refusing())
    with pytest.raises(
        ObjectStoreError, match=r"s3://bucket/run: .*got: RuntimeError: no cred"
    ) as e:
        store.read("x")
    assert "line 3" not in str(e.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://host/x", "http://host/x: must begin with s3://, gs:// or file://; got http"),
        ("file://relative", "must be file:// and an absolute path; got 'relative'"),
        ("s3://", "must be a bucket and a folder"),
        ("s3://bucket/../other", "must be a bucket and a folder"),
        ("s3://bucket/a?endpoint=x", "an endpoint in AWS_ENDPOINT_URL"),
    ],
)
def test_a_url_that_names_no_store_is_refused(url, told):
    assert is_url(url)
    with pytest.raises(PreflightError) as caught:
        open_store(url)
    assert told in str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "s3a", "https"])
def test_a_secret_in_a_url_is_refused_and_not_printed(scheme):
    with pytest.raises(PreflightError) as caught:
        open_store(f"{scheme}://AKIA:topsecret@bucket/run")
    assert "topsecret" not in str(caught.value)
    assert "AKIA:" not in str(caught.value)


def test_where_keys_belong_is_said():
    with pytest.raises(PreflightError, match="Keys belong in the environment"):
        open_store("s3://AKIA:topsecret@bucket/run")


def test_a_path_is_no_url():
    assert is_url("S3://bucket/runs")
    assert not is_url("results/demo")
    assert not is_url("C:/results")
