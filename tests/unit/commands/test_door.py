"""Whatever stands in a user's files, a command ends with 0 or 2 and a message, never a traceback.

``SAFEMERGE_FUZZ=500`` tries as many spoiled files; a failure names the seed.
"""

import os
import random
import resource
import shutil
from pathlib import Path

import pytest

from safemerge.cli import main
from tests.unit.commands.door import spoil, write_door
from tests.unit.reports import synthetic_run as synthetic

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

READERS = {
    "study.yaml": ["validate", "search"],
    "recipe.yaml": ["validate", "merge"],
    "mergekit.yaml": ["validate", "mergekit"],
    "stage.yaml": ["validate"],
    "rows": ["search"],
    "models": ["merge", "mergekit", "search"],
    "run": ["report"],
}
ROOM = 2 << 30
"""Address space in bytes that a command may take beyond what the process has; files are small."""


@pytest.fixture(scope="module")
def door(tmp_path_factory, tiny_base, tiny_expert, tiny_adapter):
    folder = tmp_path_factory.mktemp("door")
    write_door(folder, base=tiny_base, expert=tiny_expert, adapter=tiny_adapter)
    synthetic.write_run(
        folder / "run",
        spec=synthetic.make_spec(num_trials=4),
        num_sampled=4,
        synthetic=synthetic.Synthetic(counts={"search": 10, "report": 10}),
    )
    return folder


@pytest.fixture
def bounded_memory():
    """Let a command have its `ROOM` and no more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def commands(folder):
    files = [str(folder / f"{name}.yaml") for name in ("study", "recipe", "mergekit", "stage")]
    study, recipe, mergekit, _ = files
    return {
        "validate": ["validate", *files],
        "merge": ["merge", recipe, str(folder / "merged")],
        "mergekit": ["merge", mergekit, str(folder / "merged-too")],
        "search": ["search", study, "--dry-run", "--results", str(folder / "results")],
        "report": ["report", str(folder / "run")],
    }


@pytest.mark.parametrize("name", ["validate", "merge", "mergekit", "search", "report"])
def test_unspoiled_files_are_taken(door, tmp_path, name):
    folder = shutil.copytree(door, tmp_path / "door")
    assert main(commands(folder)[name]) == 0


# 21: a config.json whose value transformers refuses by an error of its own
@pytest.mark.parametrize("seed", range(int(os.environ.get("SAFEMERGE_FUZZ", "8"))))
@pytest.mark.usefixtures("bounded_memory")
def test_a_spoiled_file_is_one_message(door, tmp_path, capsys, seed):
    folder = shutil.copytree(door, tmp_path / "door")
    file, how = spoil(folder, random.Random(seed))
    for name in next(names for start, names in READERS.items() if file.startswith(start)):
        try:
            code = main(commands(folder)[name])
        except SystemExit as error:
            code = error.code
        assert code in (0, 2), (name, file, how)
        assert code == 0 or capsys.readouterr().err.strip() or name == "validate"
