"""Training that is begun anew takes nothing from a process that still trains."""

from pathlib import Path

import pytest

from safemerge.distributed import train
from safemerge.distributed.train import StageFolder, StageRun, run_stages
from safemerge.errors import RunFolderError


@pytest.fixture
def stage(tmp_path):
    stage = StageRun(None, tmp_path / "base", tmp_path / "mood", {}, "mood")
    stage.work.mkdir()
    (stage.work / "metrics.jsonl").touch()
    return stage


@pytest.fixture
def seen(monkeypatch):
    """Names of the files with which each training starts."""
    seen = []
    monkeypatch.setattr(train, "_run_stages", lambda stages, _: seen.extend(map(names, stages)))
    return seen


def names(stage):
    return sorted(path.name for path in Path(stage.work).iterdir())


@pytest.mark.parametrize(
    ("restart", "kept"), [(False, [".lock", "metrics.jsonl"]), (True, [".lock"])]
)
def test_only_a_restart_drops_unfinished_training(stage, seen, restart, kept):
    run_stages([stage], on_progress=print, restart=restart)
    assert seen == [kept]


def test_a_restart_drops_nothing_of_a_stage_that_is_being_trained(stage, seen):
    with StageFolder(stage.work).locked():
        with pytest.raises(RunFolderError, match="another process is running this training stage"):
            run_stages([stage], on_progress=print, restart=True)
        assert names(stage) == [".lock", "metrics.jsonl"]
    assert not seen
