"""What a worker of `safemerge optimize` does, without a cluster: Ray Train is played here."""

import json
import shutil
from types import SimpleNamespace

import pytest
import ray.train

from safemerge.config.recipe import MergeRecipe
from safemerge.optimize import on_ray as optimize
from safemerge.optimize.command import OptimizationFolder
from safemerge.optimize.on_ray import RESULT_FILE, check_optimization
from safemerge.optimize.spec import OptimizeSpec
from safemerge.training.log import FollowedLog, MetricsLog

GRADIENT = {"name": "gradient", "steps": 6, "batch_size": 4, "learning_rate": 0.05}
CMA = {"name": "cma_es", "evaluations": 12, "population": 4}
COCKTAIL = {"name": "lm_cocktail", "temperature": 0.1}


class Interrupted(Exception):
    """Stands for a killed worker."""


class Train:
    """Ray Train for one worker: the newest checkpoint is kept, as on a cluster."""

    def __init__(self, folder):
        self._newest = folder / "newest"
        self.stop_at = None

    def get_context(self):
        return SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)

    def get_checkpoint(self):
        if not self._newest.exists():
            return None
        return ray.train.Checkpoint.from_directory(str(self._newest))

    def report(self, metrics, checkpoint=None):
        assert checkpoint is not None, "only checkpoints are reported"
        with checkpoint.as_directory() as folder:
            shutil.rmtree(self._newest, ignore_errors=True)
            shutil.copytree(folder, self._newest)
        if metrics["step"] == self.stop_at:
            raise Interrupted


@pytest.fixture
def spec(tiny_base, tiny_experts, tmp_path):
    for name, answer in {"safety": "no", "expert": "yes"}.items():
        lines = [json.dumps({"q": f"{name} {'x' * i}", "a": answer}) for i in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def pairs(name):
        source = {"kind": "file", "path": str(tmp_path / f"{name}.jsonl")}
        return [{"source": source, "prompt": "{q}", "response": "{a}"}]

    def spec(**changes):
        given = {
            "name": "toy",
            "base": {"name": "base", "path": str(tiny_base)},
            "experts": [{"name": n, "path": str(path)} for n, path in tiny_experts.items()],
            "safety": pairs("safety"),
            "expert": pairs("expert"),
            "max_tokens": 64,
            "checkpoint_every": 2,
            "workers": {"cpus_per_worker": 1},
        }
        return OptimizeSpec.model_validate({**given, **changes})

    return spec


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Run a worker in a folder; it may be stopped after a step, and go on."""

    def work(spec, name, *, stop_at=None):
        folder = tmp_path / name
        OptimizationFolder(folder).claim(spec)
        train = Train(folder)
        train.stop_at = stop_at
        for function in ("get_context", "get_checkpoint", "report"):
            monkeypatch.setattr(ray.train, function, getattr(train, function))
        config = {"spec": spec.model_dump_json(by_alias=True), "folder": str(folder)}
        optimize._optimize_worker(config)
        return folder

    return work


def result_of(folder):
    return json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))


def steps_of(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.parametrize(
    ("settings", "stop_at", "steps"), [(GRADIENT, 4, 6), (CMA, 2, 3), (COCKTAIL, 2, 2)]
)
def test_an_interrupted_worker_goes_on_to_the_same_result(spec, work, settings, stop_at, steps):
    declared = spec(optimizer=settings)
    straight = work(declared, "straight")
    assert steps_of(straight) == list(range(1, steps + 1))
    found = result_of(straight)
    assert list(found["losses"]) == ["base", "math", "safety", "(mean)", "(optimised)"]
    MergeRecipe.model_validate_json(json.dumps(found["recipe"]))

    with pytest.raises(Interrupted):
        work(declared, "stopped", stop_at=stop_at)
    assert not (straight.parent / "stopped" / RESULT_FILE).exists()
    resumed = work(declared, "stopped")
    assert steps_of(resumed) == list(range(1, steps + 1))
    assert result_of(resumed) == found


def test_steps_after_the_last_checkpoint_are_logged_once(spec, work, monkeypatch):
    declared = spec(optimizer=GRADIENT)
    write = MetricsLog.write

    def killed(log, metrics):
        write(log, metrics)
        if metrics.step == 5:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "write", killed)
        with pytest.raises(Interrupted):
            work(declared, "run")
    folder = work(declared, "run")
    assert steps_of(folder) == list(range(1, 7))


def test_new_steps_are_followed_and_old_ones_are_not_told_again(spec, work, tmp_path):
    declared = spec(optimizer=GRADIENT)
    with pytest.raises(Interrupted):
        work(declared, "run", stop_at=4)
    told = []
    log = FollowedLog(tmp_path / "run")
    work(declared, "run")
    optimize._follow(log, lambda step, steps: told.append((step.step, steps)))
    assert told == [(5, 6), (6, 6)]
    optimize._follow(log, lambda step, steps: pytest.fail("told again"))


def test_what_is_checked_beforehand_is_what_is_optimised(spec):
    table = check_optimization(spec(optimizer=GRADIENT))
    assert table.experts == ("math", "safety")
    assert int(table.active.sum()) == 8
