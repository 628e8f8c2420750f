import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import MergeRecipe
from safemerge.distributed import statistics
from safemerge.distributed.ingredient import Ingredients
from safemerge.distributed.statistics import (
    check_quantities,
    gathered_files,
    load_model,
    resolve_statistics,
)
from safemerge.errors import ConfigError, DataError
from safemerge.testing.statistics import write_statistics
from safemerge.training.statistics import Gathering
from safemerge.weights import ModelStatistics, fingerprint, open_checkpoint


@pytest.fixture
def write(tmp_path):
    def write(*quantities, count=3, **fields):
        rows = [{"prompt": f"ask {at}", "answer": f"tell {at}"} for at in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
        document = {
            "kind": "statistics",
            "name": "toy",
            "data": [{"source": {"kind": "file", "path": "rows.jsonl"}, "response": "{answer}"}],
            "quantities": list(quantities),
            "num_samples": 3,
        }
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump({**document, **fields}), encoding="utf-8")
        return str(path)

    return write


def ref(name, folder, **given):
    return CheckpointRef(
        name=name, path=str(folder), digest=fingerprint(folder), statistics=given or None
    )


@pytest.fixture
def gathering(monkeypatch):
    """What would be gathered, without a cluster."""
    runs = []
    monkeypatch.setattr(statistics, "gather_statistics", lambda new, *, say: runs.extend(new))
    return runs


def resolve(refs, say):
    """Resolve statistics; say when a cluster is needed too."""
    return resolve_statistics(refs, say=say, need_cluster=lambda: say("cluster"))


def test_models_that_share_a_file_are_measured_each_and_equal_ones_once(
    write, gathering, tiny_base, tiny_experts
):
    file, told = write("fisher"), []
    refs = [
        ref("base", tiny_base),
        ref("math", tiny_experts["math"], gather=file),
        ref("safety", tiny_experts["safety"], gather=file),
        ref("same", tiny_experts["math"], gather=file),
    ]
    found = resolve(refs, told.append)
    assert list(found) == ["base", "math", "safety", "same"]
    assert found["base"].statistics is None
    assert [run.model for run in gathering] == [tiny_experts["math"], tiny_experts["safety"]]
    assert {run.base for run in gathering} == {tiny_base}
    assert found["math"].statistics == found["same"].statistics
    assert found["math"].statistics.digest in found["math"].statistics.path
    assert found["math"].statistics.digest != found["safety"].statistics.digest
    assert [line.split(" on ")[0] for line in told] == [
        "toy: gathering fisher of 'math'",
        "toy: gathering fisher of 'safety'",
        "cluster",
    ]
    assert gathered_files(refs) == [file]


def test_a_recipe_whose_data_changed_is_told(write, gathering, tiny_base, tiny_experts):
    file = write("gram")
    refs = [ref("base", tiny_base), ref("math", tiny_experts["math"], gather=file, digest="ab")]
    with pytest.raises(ConfigError, match=r"'math': statistics must have digest ab; got \w{16}"):
        resolve(refs, print)
    assert gathering == []


def test_gathered_folders_are_taken_as_they_are(gathering, tiny_base, tiny_expert, tmp_path):
    folder = write_statistics(tmp_path / "m", tiny_expert, model="math")
    refs = [ref("base", tiny_base), ref("math", tiny_expert, path=str(folder))]
    found = resolve(refs, print)["math"].statistics
    assert (found.path, found.digest) == (str(folder), "stand-in-math")
    assert gathering == []


def test_bad_files_and_data_are_told_before_anything_is_gathered(
    write, gathering, tiny_base, tiny_expert
):
    lacking = ref("math", tiny_expert, gather=write("gram", count=2))
    with pytest.raises(DataError, match="got 2 rows, share 3 of 3"):
        resolve([ref("base", tiny_base), lacking], print)
    wrong = ref("math", tiny_expert, gather=write("gramm"))
    with pytest.raises(ConfigError, match="gramm"):
        Ingredients(say=print, on_step=print).resolve([ref("base", tiny_base), wrong])
    assert gathering == []


def test_a_file_that_lacks_what_a_recipe_reads_is_refused(write, tiny_base, tiny_expert):
    asked = MergeRecipe(
        base=ref("base", tiny_base),
        experts=[ref("math", tiny_expert, gather=write("gram"))],
        method={"name": "fisher", "weights": {"math": 1.0}},
    )
    words = r"toy\.yaml: quantities must hold fisher, which is read of 'math'; got gram"
    with pytest.raises(ConfigError, match=words):
        check_quantities([asked])
    write("gram", "fisher")
    check_quantities([asked])


class Alone:
    """The context of a single worker."""

    def get_world_rank(self):
        return 0

    def get_world_size(self):
        return 1


@pytest.mark.parametrize("expert", ["tiny_expert", "tiny_adapter"])
def test_a_worker_writes_statistics_that_fit_the_model(
    write, gathering, tiny_base, expert, request, monkeypatch
):
    folder = request.getfixturevalue(expert)
    file = write("fisher", "gram", "importance", workers={"cpus_per_worker": 1})
    refs = [ref("base", tiny_base), ref("math", folder, gather=file)]
    found = resolve(refs, print)["math"].statistics
    (run,) = gathering
    monkeypatch.setattr("ray.train.get_context", Alone)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    statistics._gather_worker(run.config)
    base = open_checkpoint(tiny_base)
    opened = ModelStatistics(found.path)
    opened.check(base, opened.quantities, "test")
    assert (opened.digest, opened.model) == (found.digest, fingerprint(folder))
    assert opened.document["base"] == fingerprint(tiny_base)
    assert opened.document["num_rows"] == 3
    twins = opened.document["gram"]["twins"]
    assert twins["model.layers.1.self_attn.v_proj.weight"].endswith(
        "layers.1.self_attn.q_proj.weight"
    )
    at = opened.at("model.layers.1.mlp.up_proj.weight", opened.quantities)
    assert not torch.equal(at.importance, at.base_importance)
    assert not list(opened.folder.parent.glob("*.partial"))
    again = []
    resolve(refs, again.append)
    assert again == [f"toy of 'math': cached ({opened.folder.name})"]


def test_an_adapter_is_measured_as_the_model_it_makes(tiny_base, tiny_adapter):
    model = load_model(tiny_adapter, tiny_base, dtype=torch.float32)
    dense = open_checkpoint(tiny_adapter, open_checkpoint(tiny_base))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(model.get_parameter(name), dense.tensor(name))
    assert not torch.equal(model.get_parameter(name), open_checkpoint(tiny_base).tensor(name))
    whole = load_model(tiny_base, tiny_base, dtype=torch.float32)
    assert torch.equal(whole.get_parameter(name), open_checkpoint(tiny_base).tensor(name))


def test_a_worker_that_died_goes_on_from_its_sums(
    write, gathering, tiny_base, tiny_expert, monkeypatch
):
    file = write("importance", workers={"cpus_per_worker": 1})
    found = resolve([ref("base", tiny_base), ref("math", tiny_expert, gather=file)], print)
    folder = Path(found["math"].statistics.path)
    (run,) = gathering
    monkeypatch.setattr("ray.train.get_context", Alone)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("safemerge.training.partial_sums.FIRST_SAVE_S", 0.0)
    add, measured = Gathering.add, []

    def dies_once(self, row, *, index):
        if len(measured) == 4:
            measured.append("died")
            raise KeyboardInterrupt
        add(self, row, index=index)
        measured.append(index)

    monkeypatch.setattr(Gathering, "add", dies_once)
    with pytest.raises(KeyboardInterrupt):
        statistics._gather_worker(run.config)
    assert not folder.exists()
    statistics._gather_worker(run.config)
    assert measured == [0, 1, 2, 0, "died", 1, 2], "three rows of the model, then of the base"
    resumed = load_file(folder / "importance.safetensors")
    shutil.rmtree(folder)
    shutil.rmtree(run.work)
    statistics._gather_worker(run.config)
    whole = load_file(folder / "importance.safetensors")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
