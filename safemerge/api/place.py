"""Where a run is: a folder, or a URL whose run is brought to a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safemerge.api.declared import StrPath
from safemerge.api.progress import Progress
from safemerge.object_store import is_url
from safemerge.store import RunStore


def local_folder(run: StrPath) -> Path:
    """Return the folder of a run; one at a URL is fetched as it is now, for reading.

    Args:
        run: A folder, or e.g. ``s3://bucket/results/demo``.

    Raises:
        UserError: If the URL is none of an object store, or there is no run.
        ObjectStoreError: If the store cannot be asked.
    """
    if not is_url(run):
        return Path(os.fspath(run))
    from safemerge.remote_run import RemoteRun

    return RemoteRun(str(run)).fetch()


@contextmanager
def driven_run(results: StrPath, name: str, progress: Progress) -> Iterator[RunStore]:
    """Give the store of a named run to work in; one at a URL is stored there as it grows.

    Args:
        results: Folder of run folders, or a URL below which runs are.
        name: Name of the run.
        progress: Where news of the object store go.

    Raises:
        RunFolderError: If another process has the run at the URL, or took it over meanwhile.
        ObjectStoreError: If the store cannot be asked.
    """
    if not is_url(results):
        yield RunStore.under(results, name)
        return
    from safemerge.remote_run import RemoteRun, join_url

    with RemoteRun(join_url(str(results), name)).driven(progress.say) as folder:
        yield RunStore(folder)
