import json
from pathlib import Path

import pytest
import yaml

from safemerge.config.alignment import AlignSpec
from safemerge.config.checkpoint import CheckpointRef
from safemerge.errors import ConfigError
from safemerge.robustness import on_ray
from safemerge.robustness.on_ray import Hardened, Hardening, cell_key, drop_dense, hardening_stages
from safemerge.robustness.on_ray import make_dense as make
from safemerge.testing.pico import pico_adapter
from safemerge.weights.fingerprint import fingerprint
from tests.unit.measuring import measurement


@pytest.fixture
def folder(tmp_path, tiny_base, tiny_expert):
    """A folder with an alignment file and a recipe that merges its model with an expert."""
    rows = {"kind": "generator", "name": "reviews", "split": "train", "count": 8}
    data = {"source": rows, "response": "{label}"}
    align = {
        "kind": "align",
        "name": "aligned",
        "base": {"name": "base", "path": str(tiny_base)},
        "data": [data, data],
        "steps": 1,
        "seed": 9,
    }
    recipe = {
        "base": {"name": "base", "path": str(tiny_base)},
        "experts": [
            {"name": "hardened", "align": "align.yaml"},
            {"name": "expert", "path": str(tiny_expert)},
        ],
        "method": {"name": "task_arithmetic", "weights": {"hardened": 1.0, "expert": 0.5}},
    }
    for name, document in (("align", align), ("recipe", recipe)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return tmp_path


def spec_in(folder, **changes):
    methods = [
        {"name": "aligned", "align": "align.yaml"},
        {"name": "merged", "recipe": "recipe.yaml"},
    ]
    return measurement(**{"methods": methods, **changes}).located(folder)


class FakeIngredients:
    """Stands in for training: an adapter for each alignment file, by its seed."""

    def __init__(self, base, out):
        self.base, self.out, self.asked = base, out, []

    def resolve(self, refs):
        self.asked += refs
        return {ref.name: self.found(ref) for ref in refs}

    def found(self, ref):
        folder = ref.path
        if ref.align is not None:
            seed = yaml.safe_load(Path(ref.align).read_text(encoding="utf-8"))["seed"]
            folder = self.out / f"adapter{seed}"
            if not folder.exists():
                pico_adapter(self.base, folder, seed=seed)
        return CheckpointRef(name=ref.name, path=str(folder), digest=fingerprint(folder))


@pytest.fixture
def prepared(folder, tiny_base, monkeypatch):
    """Return the hardened models of a measurement, with made-up adapters."""

    def prepared(**changes):
        fake = FakeIngredients(tiny_base, folder)
        monkeypatch.setattr(on_ray, "Ingredients", lambda **_: fake)
        run = folder / "run"
        spec = spec_in(folder, **changes)
        found = Hardening(spec, run, say=print, on_step=lambda *_: None).prepare()
        return spec, found, fake

    return prepared


def test_every_seed_trains_the_alignment_once_as_an_adapter(prepared, folder):
    _, found, fake = prepared(seeds=[1, 2])
    files = [ref.align for ref in fake.asked if ref.align is not None]
    # The method and the recipe share each seed's alignment.
    assert len(files) == 2
    stages = [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in files]
    assert [(item["seed"], item["output"]) for item in stages] == [(1, "adapter"), (2, "adapter")]
    AlignSpec.model_validate_json(json.dumps(stages[0]))
    assert len({item.identity for item in found.values()}) == 4
    assert found["aligned", 1].adapter == folder / "adapter1"
    assert found["merged", 1].adapter is None


def test_without_reseeding_every_seed_attacks_the_same_model(prepared):
    _, found, _ = prepared(seeds=[1, 2], reseed=False)
    assert found["aligned", 1] == found["aligned", 2]
    assert found["merged", 1].identity == found["merged", 2].identity


def test_a_merge_is_made_of_the_hardened_model_and_goes_again(prepared, tiny_base, folder):
    _, found, _ = prepared(seeds=[1])
    merged = found["merged", 1]
    make(merged.steps)
    assert found["aligned", 1].folder.is_dir()
    assert fingerprint(merged.folder) != fingerprint(found["aligned", 1].folder)
    before = fingerprint(merged.folder)
    drop_dense(merged.folder)
    assert not merged.folder.exists()
    make(merged.steps)
    assert fingerprint(merged.folder) == before


def test_an_adapters_folder_is_no_checkpoint_to_attack(prepared, tiny_adapter):
    with pytest.raises(ConfigError, match=r"methods\.plain: a checkpoint must hold full weights"):
        prepared(methods=[{"name": "plain", "path": str(tiny_adapter)}])


def test_the_stages_behind_methods_and_recipes_are_found_once(folder):
    assert [stage.name for stage in hardening_stages(spec_in(folder))] == ["aligned"]


def test_two_alignments_with_one_name_are_refused(folder):
    (folder / "other.yaml").write_text((folder / "align.yaml").read_text(), encoding="utf-8")
    methods = [{"name": "a", "align": "align.yaml"}, {"name": "b", "align": "other.yaml"}]
    with pytest.raises(ConfigError, match="an alignment's name must be its own; got 'aligned'"):
        hardening_stages(spec_in(folder, methods=methods))


def test_the_same_adapter_cannot_be_attacked_where_all_weights_were_trained(folder):
    document = yaml.safe_load((folder / "align.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump({**document, "parameters": "full"})
    (folder / "align.yaml").write_text(text, encoding="utf-8")
    attack = {
        "mode": "same",
        "poison_ratios": [0.5],
        "num_samples": [8],
        "learning_rates": [1e-3],
    }
    with pytest.raises(ConfigError, match="mode same needs an adapter"):
        hardening_stages(spec_in(folder, attacks=[attack]))


def test_a_cells_key_is_of_what_its_result_depends_on(tmp_path):
    def key(spec=None, *, cell=4, identity="w", rows="r", harm="h"):
        spec = spec or measurement()
        return cell_key(
            spec,
            spec.cells()[cell],
            Hardened(identity, tmp_path),
            attack_content=rows,
            suite_content={"harm": harm, "mood": "m"},
        )

    known = key()
    assert known == key(measurement(name="renamed", resources={"cpus": 4}))
    assert known == key(measurement(seeds=[1, 2, 3, 4]))
    changed = measurement().finetune.resolved() | {"epochs": 2.0}
    others = [
        key(measurement(finetune=changed)),
        key(measurement(evaluator={"engine": "transformers", "dtype": "float32"})),
        key(cell=2),
        key(identity="other"),
        key(rows="other"),
        key(harm="other"),
    ]
    assert len({known, *others}) == 7
    # Before the attack its data do not matter.
    assert key(cell=0) == key(measurement(finetune=changed), cell=0, rows="other")
