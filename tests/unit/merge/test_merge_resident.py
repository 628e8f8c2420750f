import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.cache import cache_dir
from safemerge.config.method import METHODS
from safemerge.config.models import models_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import (
    CheckpointChangedError,
    CheckpointError,
    CheckpointMismatchError,
    ConfigError,
    MergeError,
)
from safemerge.merge import ResidentCheckpoints, merged_tensors
from safemerge.testing.conformance import build_method
from safemerge.testing.pico import change_config
from safemerge.testing.statistics import write_statistics
from safemerge.weights import fingerprint


@pytest.fixture
def document(tiny_base, tiny_experts):
    return {
        "base": {"name": "base", "path": str(tiny_base)},
        "experts": [{"name": name, "path": str(path)} for name, path in tiny_experts.items()],
        "method": {"name": "ties", "weights": {"math": 0.5, "safety": 0.7}, "density": 0.5},
    }


@pytest.fixture
def measured(document, tmp_path):
    """The experts with statistics of each."""
    return [
        {**ref, "statistics": {"path": str(write_statistics(
            tmp_path / ref["name"], ref["path"], model=ref["name"]
        ))}}
        for ref in document["experts"]
    ]  # fmt: skip


def recipe(document, **fields):
    return MergeRecipe.model_validate({**document, **fields})


def test_candidates_are_those_of_the_stream(document):
    asked = recipe(document)
    resident = ResidentCheckpoints.open(asked)
    for _ in range(2):
        merged = dict(resident.merged(asked))
        expected = dict(merged_tensors(asked, resident.checkpoints))
        assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert len(resident.thresholds) == 40


def test_other_methods_and_fewer_experts_are_served(document):
    resident = ResidentCheckpoints.open(recipe(document))
    fewer = recipe(
        document,
        experts=document["experts"][:1],
        method={"name": "linear", "weights": {"base": 0.5, "math": 0.5}},
    )
    assert len(list(resident.merged(fewer))) == 20


@pytest.mark.parametrize("name", METHODS)
def test_every_method_merges_a_whole_model_alike_with_and_without_what_is_kept(
    name, document, measured
):
    method = build_method(name, {"math": 0.6, "safety": 0.4}, density=0.5).resolved()
    asked = recipe(document, method=method, experts=measured)
    resident = ResidentCheckpoints.open(asked)
    first, second = (dict(resident.merged(asked)) for _ in range(2))
    alone = dict(merged_tensors(asked, resident.checkpoints, statistics=resident.statistics))
    assert set(first) == set(resident.base.distinct_names)
    for key, tensor in first.items():
        assert tensor.dtype == resident.base.dtype(key)
        assert torch.isfinite(tensor).all()
        assert torch.equal(tensor, second[key])
        assert torch.equal(tensor, alone[key])
    assert (len(resident.spectra) > 0) is (name == "tsv_m")


def test_anchors_and_steps_run_over_a_whole_model(document):
    steps = [
        {"name": "merge_align", "aligned": "safety", "alpha": {"mlp": 1.0, "default": [0, 1]}}
    ]
    asked = recipe(
        document,
        method={"name": "task_arithmetic", "weights": {"math": [1.0, 0.0]}},
        layer_groups=[{"name": "mlp", "kind": "mlp"}],
        steps=steps,
    )
    resident = ResidentCheckpoints.open(asked)
    math, safety = (resident.checkpoints[name] for name in ("math", "safety"))
    last = resident.base.num_layers - 1
    merged = dict(resident.merged(asked))

    def same(name, source):
        torch.testing.assert_close(merged[name], source.tensor(name), rtol=1e-5, atol=1e-6)

    same("model.layers.0.mlp.up_proj.weight", math)
    same(f"model.layers.{last}.mlp.up_proj.weight", resident.base)
    same("model.layers.0.self_attn.q_proj.weight", safety)
    same(f"model.layers.{last}.self_attn.q_proj.weight", resident.base)
    same("model.norm.weight", resident.base)


def test_base_tensors_are_the_bases_own(document):
    resident = ResidentCheckpoints.open(recipe(document))
    given = dict(resident.base_tensors())
    assert set(given) == set(resident.base.distinct_names)
    assert all(torch.equal(tensor, resident.base.tensor(name)) for name, tensor in given.items())


def test_an_adapter_is_opened_on_the_base(document, tiny_adapter):
    experts = [*document["experts"], {"name": "lora", "path": str(tiny_adapter)}]
    resident = ResidentCheckpoints.open(recipe(document, experts=experts))
    assert resident.checkpoints["lora"].base is resident.base


def test_a_moved_checkpoint_is_the_same_by_digest(document, tmp_path):
    def with_digest(path):
        expert = {"name": "math", "path": str(path), "digest": fingerprint(path)}
        return recipe(document, experts=[expert, document["experts"][1]])

    original = document["experts"][0]["path"]
    resident = ResidentCheckpoints.open(with_digest(original))
    moved = shutil.copytree(original, tmp_path / "moved")
    assert len(list(resident.merged(with_digest(moved)))) == 20


def test_a_digest_that_is_not_the_folders_is_refused(document):
    base = {**document["base"], "digest": "0123456789abcdef"}
    words = r"recipe [0-9a-f]{4}, model 'base': weights must have the fingerprint .* 0123456789abc"
    with pytest.raises(CheckpointMismatchError, match=words):
        ResidentCheckpoints.open(recipe(document, base=base))
    with pytest.raises(CheckpointChangedError, match=words):
        ResidentCheckpoints.open(recipe(document, base=base), check=False)


def test_checkpoints_that_disagree_are_refused(document, tmp_path):
    folder = shutil.copytree(document["experts"][0]["path"], tmp_path / "math")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(65)
    save_file(tensors, folder / "model.safetensors")
    experts = [{"name": "math", "path": str(folder)}, document["experts"][1]]
    with pytest.raises(CheckpointMismatchError, match=r"recipe [0-9a-f]{4}, tensor 'model\.norm"):
        ResidentCheckpoints.open(recipe(document, experts=experts))


def test_a_reference_that_is_not_resolved_is_refused(document):
    base = {"name": "base", "package": "smollm2-135m-instruct"}
    with pytest.raises(MergeError, match="model 'base': must be a folder by now"):
        ResidentCheckpoints.open(recipe(document, base=base))


def test_an_adapter_cannot_be_the_base(document, tiny_adapter):
    base = {"name": "base", "path": str(tiny_adapter)}
    with pytest.raises(CheckpointError, match="an adapter needs the base"):
        ResidentCheckpoints.open(recipe(document, base=base))


def test_a_layer_group_that_matches_nothing_is_refused_at_once(document):
    groups = [{"name": "late", "layers": "7"}]
    with pytest.raises(ConfigError, match=r"layer_groups\.late"):
        ResidentCheckpoints.open(recipe(document, layer_groups=groups))


def test_recipes_over_other_checkpoints_are_refused(document, tmp_path):
    resident = ResidentCheckpoints.open(recipe(document))
    elsewhere = {"name": "math", "path": str(tmp_path)}
    with pytest.raises(MergeError, match="model 'math' must be the one held; got"):
        resident.merged(recipe(document, experts=[elsewhere, document["experts"][1]]))
    unknown = {"name": "code", "path": str(tmp_path)}
    with pytest.raises(MergeError, match="held is no such model"):
        resident.merged(recipe(document, experts=[*document["experts"], unknown]))


def test_a_folder_whose_weights_changed_since_is_refused(document):
    base = {**document["base"], "digest": fingerprint(document["base"]["path"])}
    resident = ResidentCheckpoints.open(recipe(document, base=base))
    changed = {**base, "digest": "0123456789abcdef"}
    with pytest.raises(MergeError, match="model 'base' must be the one held"):
        resident.merged(recipe(document, base=changed))


@pytest.fixture
def own(document, tmp_path):
    """The models as copies that may be changed, with digests."""
    refs = [
        {**ref, "path": str(shutil.copytree(ref["path"], tmp_path / ref["name"]))}
        for ref in (document["base"], *document["experts"])
    ]
    base, *experts = ({**ref, "digest": fingerprint(ref["path"])} for ref in refs)
    return {**document, "base": base, "experts": experts}


def weights(ref):
    return Path(ref["path"]) / "model.safetensors"


def edit(path):
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\x80\x3f")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "edited in place, its time kept": edit,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "replaced": lambda path: edit(shutil.copy2(path, path.with_name("n")).replace(path)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", ["before", "during"])
def test_an_ingredient_that_changes_is_named_and_nothing_is_merged(own, change, at):
    asked = recipe(own)
    resident = ResidentCheckpoints.open(asked)
    stream = resident.merged(asked)
    if at == "during":
        next(stream)
    CHANGES[change](weights(own["experts"][1]))
    with pytest.raises(CheckpointChangedError, match=r"safety/model\.safetensors: must stay"):
        list(stream)
    with pytest.raises(CheckpointChangedError):
        list(resident.merged(asked))


@pytest.mark.parametrize("change", CHANGES)
def test_an_ingredient_that_changed_is_refused_when_it_is_opened_again(own, change):
    asked = recipe(own)
    ResidentCheckpoints.open(asked)
    CHANGES[change](weights(own["experts"][1]))
    with pytest.raises(CheckpointError, match="safety"):
        ResidentCheckpoints.open(asked, check=False)


def test_nothing_that_was_derived_of_a_changed_ingredient_is_kept(own):
    asked = recipe(own)
    stream = ResidentCheckpoints.open(asked).merged(asked)
    os.truncate(weights(own["experts"][1]), weights(own["experts"][1]).stat().st_size // 2)
    with pytest.raises(CheckpointChangedError):
        list(stream)
    assert not list((cache_dir() / "derived").glob("*.blob"))


def test_a_config_that_changes_is_named_and_another_layout_is_not(own):
    asked = recipe(own)
    resident = ResidentCheckpoints.open(asked)
    path = Path(own["base"]["path"]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    list(resident.merged(asked))
    change_config(path.parent, rms_norm_eps=0.5)
    with pytest.raises(CheckpointChangedError, match=r"base/config\.json: must stay as it was"):
        list(resident.merged(asked))


def test_statistics_that_change_are_named(document, measured):
    asked = recipe(document, method=FISHER, experts=measured)
    resident = ResidentCheckpoints.open(asked)
    path = Path(measured[0]["statistics"]["path"]) / "fisher.safetensors"
    path.write_bytes(path.read_bytes())
    with pytest.raises(CheckpointChangedError, match=r"fisher\.safetensors: must stay"):
        list(resident.merged(asked))


def test_another_base_is_refused(document):
    resident = ResidentCheckpoints.open(recipe(document))
    swapped = recipe(
        document,
        base=document["experts"][0],
        experts=[document["base"], document["experts"][1]],
        method={"name": "task_arithmetic", "weights": {"safety": 1.0}},
    )
    with pytest.raises(MergeError, match="must be the one held, 'base'; got 'math'"):
        resident.merged(swapped)


def test_several_weights_under_one_name_are_told_by_their_digest(
    document, tiny_base, tiny_aligned
):
    """What a study needs that searches an expert's training: thresholds must not be mixed up."""
    paths = {"math": document["experts"][0]["path"], "math--1": str(tiny_aligned)}
    known = {name: fingerprint(path) for name, path in paths.items()}
    models = recipe(
        document,
        experts=[
            *({"name": name, "path": path, "digest": known[name]} for name, path in paths.items()),
            document["experts"][1],
        ],
    )
    resident = ResidentCheckpoints.open(models)
    for held in ("math", "math--1", "math"):
        math = {"name": "math", "path": paths[held], "digest": known[held]}
        asked = recipe(document, experts=[math, document["experts"][1]])
        alone = ResidentCheckpoints.open(asked)
        expected = dict(alone.merged(asked))
        got = dict(resident.merged(asked))
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


FISHER = {"name": "fisher", "weights": {"math": 1.0, "safety": 0.5}}


def test_weights_of_measured_models_vary_without_opening_anything_anew(document, measured):
    resident = ResidentCheckpoints.open(recipe(document, method=FISHER, experts=measured))
    found = []
    for weight in (0.0, 0.5, 5.0):
        method = {**FISHER, "weights": {"math": 1.0, "safety": weight}}
        merged = resident.merged(recipe(document, method=method, experts=measured))
        found.append(dict(merged)["model.layers.0.mlp.up_proj.weight"])
    math = resident.checkpoints["math"].tensor("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(found[0], math)
    assert (found[1] - math).norm() < (found[2] - math).norm()


def test_an_evaluators_models_are_opened_with_their_statistics(document, measured):
    asked = recipe(document, method=FISHER, experts=measured)
    resident = ResidentCheckpoints.open(models_recipe(asked.base, asked.experts), check=False)
    expected = dict(ResidentCheckpoints.open(asked).merged(asked))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resident.merged(asked))


def test_led_keeps_part_of_each_expert(document, measured):
    method = {"name": "task_arithmetic", "weights": {"math": 1.0, "safety": 1.0}}
    asked = recipe(document, method=method, experts=measured, steps=[{"name": "led"}])
    resident = ResidentCheckpoints.open(asked)
    for key, tensor in resident.merged(asked):
        same = float((tensor == resident.base.tensor(key)).float().mean())
        assert 0.3 < same < 1.0, key


def test_statistics_of_another_model_are_refused(document, measured, tiny_experts, tmp_path):
    wrong = str(write_statistics(tmp_path / "w", tiny_experts["safety"], model="safety"))
    changed = [{**measured[0], "statistics": {"path": wrong}}, measured[1]]
    words = "model 'math': statistics must be of this model"
    with pytest.raises(CheckpointMismatchError, match=words):
        ResidentCheckpoints.open(recipe(document, experts=changed))


def test_statistics_of_another_digest_are_refused(document, measured):
    path = measured[0]["statistics"]["path"]
    other = [{**measured[0], "statistics": {"path": path, "digest": "abcd"}}, measured[1]]
    with pytest.raises(CheckpointMismatchError, match="the recipe's digest, abcd; got stand-in"):
        ResidentCheckpoints.open(recipe(document, experts=other))
    resident = ResidentCheckpoints.open(recipe(document, experts=measured))
    with pytest.raises(MergeError, match="statistics of 'math' must be those held; got abcd"):
        resident.merged(recipe(document, experts=other, method=FISHER))
    resident.merged(recipe(document, experts=other))  # not read, so not asked for


def test_statistics_that_are_not_gathered_yet_are_refused(document, measured):
    later = [{**measured[0], "statistics": {"gather": "x.yaml"}}, measured[1]]
    with pytest.raises(MergeError, match=r"must be a folder by now; got 'x\.yaml'"):
        ResidentCheckpoints.open(recipe(document, experts=later))
