import json
import shutil

import pytest
import yaml

from safemerge.config.alignment import AlignSpec
from safemerge.config.checkpoint import CheckpointRef, Neighbours
from safemerge.config.training import FinetuneSpec
from safemerge.distributed.ingredient import (
    Ingredients,
    Stage,
    fetch_hub_models,
    finished_folder,
    known_folder,
    load_training_spec,
    stage_file,
    training_plan,
)
from safemerge.errors import CheckpointError, ConfigError
from safemerge.weights.fingerprint import fingerprint

SET = {"source": {"kind": "generator", "name": "reviews", "split": "train", "count": 4}}


@pytest.fixture
def write(tmp_path):
    def write(file, kind, **base):
        document = {
            "kind": kind,
            "name": file.split(".")[0],
            "base": {"name": "base", **base},
            "data": [{**SET, "response": "{label}"}] * 2,
            "steps": 1,
        }
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return str(path)

    return write


def ref(name, **source):
    return CheckpointRef(name=name, **source)


def test_checkpoints_that_exist_need_no_training():
    refs = [ref("a", path="/a"), ref("b", package="smollm2-135m-instruct")]
    assert [stage_file(item) for item in refs] == [None, None]
    assert training_plan(refs) == []


def test_stages_that_others_start_from_come_in_an_earlier_wave(write):
    aligned = write("aligned.yaml", "align", path="/base")
    math = write("math.yaml", "finetune", align="aligned.yaml")
    code = write("code.yaml", "finetune", align="aligned.yaml")
    late = write("late.yaml", "finetune", finetune="math.yaml")
    plain = write("plain.yaml", "finetune", path="/base")
    refs = [ref("late", finetune=late), ref("code", finetune=code), ref("plain", finetune=plain)]
    assert [sorted(wave) for wave in training_plan(refs)] == [
        sorted([Stage(aligned, "align"), Stage(plain, "finetune")]),
        sorted([Stage(math, "finetune"), Stage(code, "finetune")]),
        [Stage(late, "finetune")],
    ]


def test_a_stage_that_several_need_is_trained_once(write):
    aligned = write("aligned.yaml", "align", path="/base")
    refs = [ref("one", align=aligned), ref("two", align=aligned)]
    assert training_plan(refs) == [[Stage(aligned, "align")]]


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"one.yaml": "one.yaml"}, r"one\.yaml -> \S+one\.yaml\."),
        (
            {"one.yaml": "two.yaml", "two.yaml": "three.yaml", "three.yaml": "two.yaml"},
            r"one\.yaml -> \S+two\.yaml -> \S+three\.yaml -> \S+two\.yaml\.",
        ),
    ],
)
def test_files_that_need_each_other_in_a_circle_are_refused(write, files, circle):
    first, *_ = [write(file, "finetune", finetune=base) for file, base in files.items()]
    words = rf"\.yaml: training files must not need each other in a circle; got \S+{circle}"
    with pytest.raises(ConfigError, match=words):
        training_plan([ref("one", finetune=first)])


def test_a_training_file_is_read_by_its_kind_with_paths_from_its_own_folder(write, tmp_path):
    path = write("stage.yaml", "align", path="models/base")
    spec = load_training_spec(path, "align")
    assert isinstance(spec, AlignSpec)
    assert spec.base.path == str(tmp_path / "models" / "base")
    finetune = write("other.yaml", "finetune", path="/base")
    assert isinstance(load_training_spec(finetune, "finetune"), FinetuneSpec)
    with pytest.raises(ConfigError, match=r"other\.yaml: kind: must be 'align'; got .finetune"):
        load_training_spec(finetune, "align")


def ingredients(said=None):
    return Ingredients(say=(said if said is not None else []).append, on_step=lambda *_: None)


def test_paths_are_fingerprinted_and_nothing_is_trained(tiny_base, tiny_expert):
    said = []
    refs = [ref("base", path=str(tiny_base)), ref("math", path=str(tiny_expert))]
    found = ingredients(said).resolve(refs)
    assert said == []
    assert {name: item.digest for name, item in found.items()} == {
        "base": fingerprint(tiny_base),
        "math": fingerprint(tiny_expert),
    }
    assert found["math"].path == str(tiny_expert)


def test_weights_that_changed_since_the_recipe_are_refused(tiny_base):
    found = fingerprint(tiny_base)
    words = rf"checkpoint 'base': weights must have fingerprint {'0' * 16}; got {found} in "
    with pytest.raises(ConfigError, match=words):
        ingredients().resolve([ref("base", path=str(tiny_base), digest="0" * 16)])


def test_settings_replace_those_of_the_file_and_make_a_stage_of_their_own(write):
    path = write("safe.yaml", "align", path="/base")
    refs = [
        ref("plain", align=path),
        ref("slow", align=path, settings={"learning_rate": 1e-5}),
        ref("again", align=path, settings={"learning_rate": 1e-5}),
    ]
    (wave,) = training_plan(refs)
    assert [stage.load().learning_rate for stage in wave] == [5e-4, 1e-5]
    assert wave[1].label == f"align {path} learning_rate=1e-05"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"learning_rate": -1.0},
            r"safe\.yaml, with learning_rate=-1: learning_rate: must be a",
        ),
        ({"lerning_rate": 1.0}, r"no such path .* wrong at 'lerning_rate'. Did you mean 'learni"),
        ({"booster.lambda": 1.0}, r"wrong at 'booster'"),
    ],
)
def test_a_setting_that_the_file_cannot_take_is_refused(write, settings, words):
    path = write("safe.yaml", "align", path="/base")
    with pytest.raises(ConfigError, match=words):
        load_training_spec(path, "align", settings=settings)


def test_a_reference_between_two_checkpoints_is_resolved_at_both_ends(tiny_experts):
    first, second = (ref(name, path=str(path)) for name, path in list(tiny_experts.items())[:2])
    line = CheckpointRef(name="line", between=Neighbours(low=first, high=second, share=0.5))
    ingredients = Ingredients(say=lambda _: None, on_step=lambda *_: None)

    found = ingredients.resolve([first, line])["line"]

    ends = [fingerprint(str(end.path)) for end in (first, second)]
    assert [end.digest for end in found.between.ends] == ends
    assert found.digest == found.between.digest
    moved = found.model_copy(update={"digest": "another"})
    with pytest.raises(ConfigError, match="'line': weights must have digest another; got"):
        ingredients.resolve([first, moved])


def test_what_lies_between_two_stages_needs_both(write):
    file = write("aligned.yaml", "align", path="/base")
    low, high = (ref(f"x{seed}", align=file, settings={"seed": seed}) for seed in (1, 2))
    line = CheckpointRef(name="line", between=Neighbours(low=low, high=high, share=0.5))
    assert training_plan([line]) == [
        [Stage(file, "align", (("seed", 1),)), Stage(file, "align", (("seed", 2),))]
    ]


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_base, tiny_expert):
    """A cache of the hub with org/base and org/math, without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folders = {}
    for name, source, commit in (("base", tiny_base, "a" * 40), ("math", tiny_expert, "b" * 40)):
        stored = tmp_path / "hub" / f"models--org--{name}"
        folders[name] = shutil.copytree(source, stored / "snapshots" / commit)
        (stored / "refs").mkdir()
        (stored / "refs/main").write_text(commit)
    return folders


def test_a_repository_of_the_hub_is_pinned_to_its_commit(hub, tiny_expert):
    said = []
    refs = [ref("base", hub="org/base"), ref("math", hub="org/math", revision="main")]
    found = ingredients(said).resolve(refs)
    assert said == [
        "base: org/base, revision main, of the hub",
        "math: org/math, revision main, of the hub",
    ]
    math = found["math"]
    assert (math.hub, math.revision) == ("org/math", "b" * 40)
    assert (math.path, math.digest) == (str(hub["math"]), fingerprint(tiny_expert))
    again = ref(**json.loads(math.model_dump_json()))
    assert again == math
    assert ingredients().resolve([found["base"], again]) == found


def test_a_pinned_repository_is_had_again_where_its_folder_is_gone(hub, tiny_expert):
    found = ingredients().resolve([ref("math", hub="org/math")])["math"]
    moved = found.model_copy(update={"path": "/elsewhere/models--org--math/snapshots/x"})
    assert ingredients().resolve([moved])["math"] == found


def test_what_the_hub_does_not_give_is_told_before_anything_is_trained(hub, write):
    trained = ref("safe", align=write("safe.yaml", "align", path="/base"))
    with pytest.raises(CheckpointError, match=r"model 'math' \(hub: org/none, revision main\)"):
        ingredients().resolve([ref("base", hub="org/base"), trained, ref("math", hub="org/none")])


def test_a_stage_may_begin_with_a_repository_of_the_hub(hub):
    assert finished_folder(ref("base", hub="org/base")) == hub["base"]


def test_a_folder_is_known_once_the_hub_gave_it(hub, tmp_path):
    assert known_folder(ref("a", path="/models/a")) == "/models/a"
    assert known_folder(ref("a", align="/stages/a.yaml")) is None
    assert known_folder(ref("math", hub="org/math")) == str(hub["math"])
    assert known_folder(ref("math", hub="org/none")) is None
    fetch_hub_models([ref("a", path="/models/a"), ref("math", hub="org/math")])
    with pytest.raises(CheckpointError, match="hf download org/none --revision main"):
        fetch_hub_models([ref("math", hub="org/none")])
