"""Append-only lines with a running digest beside them, so that lost or edited lines are noticed.

Beside ``trials.jsonl`` stands ``trials.digest``: one entry for each line, with the offset at which
the line ends and the SHA-256 of the entry before and the line. An entry so vouches for every line
up to its own, and the file's last entry tells how many there must be.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from safemerge.errors import ChangedRunError
from safemerge.files import (
    TornLine,
    appended_line,
    free_name,
    locked_file,
    read_from,
    replace_file,
    sync_folder,
    write_all,
)

ACCEPT = "--accept-trials"
"""Option of commands that takes the lines as they are now."""


class Entry(NamedTuple):
    """What the digest file says of one line."""

    end: int
    """Offset behind the line's newline, in bytes."""
    digest: str
    """SHA-256 over the digest of the entry before (as text; empty for the first) and the line."""

    def encoded(self) -> bytes:
        """Return the entry as its line in the digest file; all are equally long."""
        return f"{self.end:016d} {self.digest}\n".encode()


_LENGTH = len(Entry(0, "0" * 64).encoded())
_START = Entry(0, "")


class ChainedLines:
    """A file of lines that only grows, and its digest file.

    A line is written first and its entry second, both under the file's lock and synced. A process
    that was killed in between leaves one line without an entry, which is taken in; a torn entry is
    written anew. Without a digest file (as of earlier versions) every line is taken in.

    Args:
        path: The file of lines, e.g. ``trials.jsonl``.
        is_whole: Tells whether an unfinished last line is a whole record all the same.
        advice: What to do about lines that are gone or edited, for messages.
    """

    def __init__(
        self, path: Path, *, is_whole: Callable[[bytes], bool], advice: str | None = None
    ) -> None:
        self.path = path
        self._advice = advice or (
            f"Restore it from a copy, or accept the lines as they are: `safemerge report RUN_DIR "
            f"{ACCEPT}` (or `search … --resume {ACCEPT}`); nothing is deleted."
        )
        self.digest_path = path.with_suffix(".digest")
        self._is_whole = is_whole

    def append(self, line: bytes) -> TornLine | None:
        """Append one line, and return once it and its entry are on disk; reads no other line.

        Args:
            line: Without its newline.

        Returns:
            A torn line that was moved aside before, if there was one.

        Raises:
            ChangedRunError: If lines are gone since the last one was written.
            OSError: As the system reports it; both files are then as they were.
        """
        with appended_line(self.path, line, is_whole=self._is_whole) as appended:
            last, count = self._last()
            if appended.start < last.end:
                raise ChangedRunError(
                    f"{self.path}: must hold {last.end} bytes in {count} lines; got "
                    f"{appended.start} bytes. {self._advice}"
                )
            added = read_from(appended.handle, last.end).split(b"\n")[:-1]
            if count and len(added) > 2:
                raise ChangedRunError(self._too_many(count, count + len(added) - 1))
            self._add(_entries(added, after=last), at=count)
        return appended.torn

    def read(self) -> list[bytes]:
        """Return every finished line, once they are found to be those that were written.

        Raises:
            ChangedRunError: If a line is gone, changed, or was not written through `append`.
            OSError: As the system reports it.
        """
        try:
            with locked_file(self.path, os.O_RDONLY, exclusive=False) as handle:
                content = read_from(handle, 0)
                stored = self._stored()
        except FileNotFoundError:
            content, stored = b"", self._stored()
        lines = content.split(b"\n")[:-1]
        if stored is not None:
            self._check(lines, stored)
        return lines

    def accept(self) -> Path | None:
        """Take the lines as they are now; the digest file so far is kept beside.

        Returns:
            Where that one is kept; None if the lines are those that were written.

        Raises:
            OSError: As the system reports it.
        """
        try:
            self.read()
        except ChangedRunError:
            pass
        else:
            return None
        kept = free_name(self.digest_path)
        with locked_file(self.path, os.O_RDWR | os.O_CREAT) as handle:
            lines = read_from(handle, 0).split(b"\n")[:-1]
            self.digest_path.rename(kept)
            entries = _entries(lines, after=_START)
            replace_file(self.digest_path, b"".join(entry.encoded() for entry in entries))
        return kept

    def _check(self, lines: Sequence[bytes], stored: Sequence[bytes]) -> None:
        """Compare lines with the entries that were written; one line more is a killed process."""
        found = [entry.encoded() for entry in _entries(lines, after=_START)]
        pairs = enumerate(zip(found, stored, strict=False), start=1)
        changed = next((number for number, (one, other) in pairs if one != other), None)
        if len(lines) < len(stored):
            gone = f"{len(stored) - len(lines)} of them gone"
            first = "" if changed is None else f", line {changed} the first that differs"
            raise ChangedRunError(
                f"{self.path}: must hold the {len(stored)} lines that were written; got "
                f"{len(lines)}, {gone}{first}. {self._advice}"
            )
        if changed is not None:
            raise ChangedRunError(
                f"{self.path}, line {changed}: must be as it was written; got another one "
                f"({len(stored)} lines were written, {len(lines)} found). {self._advice}"
            )
        if len(lines) > len(stored) + 1:
            raise ChangedRunError(self._too_many(len(stored), len(lines)))

    def _stored(self) -> list[bytes] | None:
        """Every whole entry of the digest file; None if there is no such file."""
        try:
            content = self.digest_path.read_bytes()
        except FileNotFoundError:
            return None
        return [
            content[start : start + _LENGTH]
            for start in range(0, len(content) - _LENGTH + 1, _LENGTH)
        ]

    def _last(self) -> tuple[Entry, int]:
        """The digest file's last whole entry, and how many there are."""
        try:
            with self.digest_path.open("rb") as stream:
                count = os.fstat(stream.fileno()).st_size // _LENGTH
                if count == 0:
                    return _START, 0
                stream.seek((count - 1) * _LENGTH)
                end, digest = stream.read(_LENGTH).decode("ascii").split()
                return Entry(int(end), digest), count
        except FileNotFoundError:
            return _START, 0
        except ValueError:
            raise ChangedRunError(
                f"{self.digest_path}: must hold the digests of the lines; got something else. "
                f"{self._advice}"
            ) from None

    def _too_many(self, written: int, found: int) -> str:
        return (
            f"{self.path}: must hold the {written} lines that were written; got {found}, of which "
            f"{found - written} were added by something else. {self._advice}"
        )

    def _add(self, entries: Sequence[Entry], *, at: int) -> None:
        """Write entries behind the first `at` ones; on failure those alone are left."""
        is_new = not self.digest_path.exists()
        handle = os.open(self.digest_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(handle, at * _LENGTH)
            os.lseek(handle, 0, os.SEEK_END)
            try:
                write_all(handle, b"".join(entry.encoded() for entry in entries))
                os.fsync(handle)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, at * _LENGTH)
                raise
        finally:
            os.close(handle)
        if is_new:
            sync_folder(self.digest_path.parent)


def _entries(lines: Sequence[bytes], *, after: Entry) -> list[Entry]:
    entries = []
    for line in lines:
        content = after.digest.encode() + line
        after = Entry(after.end + len(line) + 1, hashlib.sha256(content).hexdigest())
        entries.append(after)
    return entries
