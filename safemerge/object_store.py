"""Objects at a URL: read, replace, and create only where there is none.

What is built on it needs one guarantee of a store: of several writers that create an object of
one name, exactly one succeeds. S3 gives it (``If-None-Match: *``), Google Cloud Storage
(generation 0), and a file system (a hard link).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safemerge.errors import ObjectStoreError, PreflightError
from safemerge.files import create_file, replace_file

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""Package of a scheme, each an extra of safemerge of the scheme's name; ``file`` needs none."""

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<place>.*)", re.DOTALL | re.IGNORECASE)
_PLACE = re.compile(r"[A-Za-z0-9._/~=+ -]+")
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 2},
        },
    },
    "gs": {},
}


class ObjectStore(Protocol):
    """A folder of objects; names are relative, with ``/``.

    Every method raises `ObjectStoreError` if the store cannot be asked.
    """

    url: str

    def read(self, name: str) -> bytes | None:
        """Return an object's content; None if there is none."""

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """Return the content of several objects; those that are missing are left out."""

    def put(self, name: str, content: bytes) -> None:
        """Replace an object whole."""

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether it was written."""

    def names(self, folder: str) -> list[str]:
        """Return the last parts of the names of what lies right in a folder, sorted."""


def is_url(place: object) -> bool:
    """Whether a place is given as a URL."""
    return isinstance(place, str) and _URL.fullmatch(place) is not None


def open_store(url: str) -> ObjectStore:
    """Open a folder of objects.

    Args:
        url: ``s3://BUCKET/FOLDER``, ``gs://BUCKET/FOLDER`` or ``file:///FOLDER``. Keys and
            endpoint come from where the provider's own tools look for them (environment,
            profile, role).

    Raises:
        PreflightError: If the URL is none of these, or its package is not installed.
    """
    match = _URL.fullmatch(url)
    scheme, place = (match["scheme"].lower(), match["place"].rstrip("/")) if match else ("", "")
    if scheme not in ("file", *PACKAGES):
        raise PreflightError(
            f"{shown_url(url)}: must begin with s3://, gs:// or file://; got "
            f"{scheme or 'no scheme'}. Name a bucket and a folder in it, or a folder here."
        )
    if not _PLACE.fullmatch(place) or ".." in place.split("/") or "//" in place:
        # An @ would be a password, a ? options of somebody's: neither is printed back.
        raise PreflightError(
            f"{scheme}://…: must be a bucket and a folder, in letters, digits and ._~=+- alone; "
            "got something else. Keys belong in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS), an endpoint in "
            "AWS_ENDPOINT_URL."
        )
    if scheme == "file":
        if not place.startswith("/"):
            raise PreflightError(
                f"{shown_url(url)}: must be file:// and an absolute path; got {place!r}. Write "
                "file:///FOLDER."
            )
        return FolderStore(f"file://{place}")
    try:
        import fsspec

        filesystem = fsspec.filesystem(
            scheme, use_listings_cache=False, skip_instance_cache=True, **_OPTIONS[scheme]
        )
    except ImportError as error:
        raise PreflightError(
            f"{shown_url(url)}: needs the package {PACKAGES[scheme]}; got: {error}. Install "
            f"safemerge[{scheme}]."
        ) from None
    except Exception as error:  # noqa: BLE001
        # A border: libraries of providers raise what they like, e.g. without credentials.
        raise PreflightError(
            f"{shown_url(url)}: must be a store that can be reached; got: {_told(error)}. "
            "Check its credentials."
        ) from None
    return FilesystemStore(f"{scheme}://{place}", filesystem)


class FilesystemStore:
    """A folder of an fsspec file system whose ``pipe_file`` can create exclusively.

    Args:
        url: For messages; what follows ``://`` is the folder.
        filesystem: `fsspec.AbstractFileSystem`, without a cache of listings.
    """

    def __init__(self, url: str, filesystem: Any) -> None:
        self.url = url
        self._filesystem = filesystem
        self._root = url.partition("://")[2]

    def read(self, name: str) -> bytes | None:
        """See `ObjectStore`."""
        with self._asked():
            try:
                content: bytes = self._filesystem.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None
        return content

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """See `ObjectStore`."""
        if not names:
            return {}
        with self._asked():
            paths = {f"{self._root}/{name}": name for name in names}
            found = self._filesystem.cat(list(paths), on_error="return")
            contents = {paths[path.lstrip("/")]: content for path, content in found.items()}
            for content in contents.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return {name: content for name, content in contents.items() if isinstance(content, bytes)}

    def put(self, name: str, content: bytes) -> None:
        """See `ObjectStore`."""
        with self._asked():
            self._filesystem.pipe_file(f"{self._root}/{name}", content)

    def create(self, name: str, content: bytes) -> bool:
        """See `ObjectStore`."""
        with self._asked():
            try:
                self._filesystem.pipe_file(f"{self._root}/{name}", content, mode="create")
            except FileExistsError:
                return False
        return True

    def names(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        with self._asked():
            try:
                found = self._filesystem.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)
            except FileNotFoundError:
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001
            # A border: providers' clients raise families of their own, and OSError without a path.
            raise ObjectStoreError(
                f"{self.url}: must be a store that can be read and written; got: {_told(error)}. "
                "Check bucket, credentials and network."
            ) from None


class FolderStore:
    """A folder of this machine, or of storage that several machines mount.

    Args:
        url: ``file://`` and an absolute path.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = Path(url.partition("://")[2])

    def read(self, name: str) -> bytes | None:
        """See `ObjectStore`."""
        with self._asked():
            try:
                return (self._root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """See `ObjectStore`."""
        found = {name: self.read(name) for name in names}
        return {name: content for name, content in found.items() if content is not None}

    def put(self, name: str, content: bytes) -> None:
        """See `ObjectStore`."""
        with self._asked():
            path = self._folder_of(name)
            replace_file(path, content)

    def create(self, name: str, content: bytes) -> bool:
        """See `ObjectStore`."""
        with self._asked():
            return create_file(self._folder_of(name), content)

    def names(self, folder: str) -> list[str]:
        """See `ObjectStore`."""
        with self._asked():
            try:
                found = [path.name for path in (self._root / folder).iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(name for name in found if not name.startswith("."))

    def _folder_of(self, name: str) -> Path:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ObjectStoreError(
                f"{self.url}: must be a folder that can be read and written; got: "
                f"{error.strerror or error}. Check the path and its permissions."
            ) from None


def _told(error: Exception) -> str:
    """Return what an error says in one line: its class, as some say nothing, and its text."""
    text = (str(error) or "").splitlines()
    return f"{type(error).__name__}: {text[0][:200].rstrip('.')}" if text else type(error).__name__


def shown_url(url: str) -> str:
    """Return a URL for a message without what may be a secret: with an @, its scheme alone."""
    if "@" in url:
        return f"{url.partition('://')[0][:80]}://…"
    return url.partition("?")[0][:80]
