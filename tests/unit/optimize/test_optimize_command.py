import json

import pytest
import yaml

from safemerge.cli import main
from safemerge.config.document import load_document
from safemerge.config.recipe import MergeRecipe
from safemerge.distributed.contamination import seen_data
from safemerge.errors import UserError
from safemerge.optimize.command import loss_table, weight_table
from safemerge.optimize.spec import OptimizeSpec
from safemerge.testing import pico


@pytest.fixture
def write(tiny_base, tiny_experts, tmp_path):
    """Write an optimisation with some fields changed, and return its path."""
    rows = "".join(json.dumps({"q": f"question {i}", "a": "yes"}) + "\n" for i in range(4))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    pairs = [
        {"source": {"kind": "file", "path": "rows.jsonl"}, "prompt": "{q}", "response": "{a}"}
    ]
    experts = [{"name": name, "path": str(path)} for name, path in tiny_experts.items()]
    document = {
        "kind": "optimize",
        "name": "toy",
        "base": {"name": "base", "path": str(tiny_base)},
        "experts": experts,
        "safety": pairs,
        "expert": pairs,
        "optimizer": {"name": "gradient", "steps": 2, "batch_size": 2},
    }

    def write(**changes):
        path = tmp_path / "optimize.yaml"
        path.write_text(yaml.safe_dump(document | changes), encoding="utf-8")
        return path

    return write


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run the command, which must end before a cluster starts; return its one line."""

    def no_cluster():
        pytest.fail("a cluster was started")

    monkeypatch.setattr("safemerge.distributed.cluster.ray_cluster", no_cluster)

    def refused(path, *options):
        capsys.readouterr()
        code = main(["optimize", str(path), "--results", str(tmp_path / "r"), *options])
        assert code == 2
        # transformers' own progress bars may stand before it.
        told = capsys.readouterr().err
        assert told.count("safemerge: ") == 1
        return told.rpartition("safemerge: ")[2].rstrip("\n")

    return refused


def pairs_of(path):
    return [{"source": {"kind": "file", "path": path}, "prompt": "{q}", "response": "{a}"}]


def test_without_safety_data_nothing_starts(write, refused):
    line = refused(write(safety=[]))
    assert "optimize.yaml: safety: must have a data set; got none." in line


def test_an_alpha_out_of_range_is_refused(write, refused):
    assert "alpha: must be at most 1; got 3." in refused(write(alpha=3))


def test_missing_data_are_refused(write, refused):
    line = refused(write(safety=pairs_of("nowhere.jsonl")))
    assert "toy: safety.0: no such data file; got" in line


def test_a_template_without_its_column_is_refused(write, refused):
    wrong = [{**pairs_of("rows.jsonl")[0], "response": "{answer}"}]
    line = refused(write(expert=wrong))
    assert "toy: expert.0.response: the data must have the named column; got 'answer'." in line


def test_a_task_vector_of_zero_is_refused(write, refused, tiny_base, tiny_expert):
    experts = [
        {"name": "math", "path": str(tiny_expert)},
        {"name": "same", "path": str(tiny_base)},
    ]
    line = refused(write(experts=experts))
    assert "toy, expert 'same': must differ from the base 'base'; got a task vector of" in line


def test_an_adapter_of_another_base_is_refused(write, refused, tiny_expert, tmp_path):
    adapter = pico.pico_adapter(tiny_expert, tmp_path / "adapter", seed=1)
    line = refused(write(experts=[{"name": "lora", "path": str(adapter)}]))
    assert "toy, expert 'lora': adapter must have been trained on this base" in line
    assert str(adapter) in line


def test_an_expert_of_another_shape_is_refused(write, refused, tmp_path):
    deep = pico.pico_base(tmp_path / "deep", num_layers=3)
    line = refused(write(experts=[{"name": "deep", "path": str(deep)}]))
    assert "expert 'deep': experts must share the base architecture" in line


def test_a_layer_group_without_tensors_is_refused(write, refused):
    group = {"name": "top", "layers": "7-9"}
    optimizer = {"name": "gradient", "coefficients": "group", "layer_groups": [group]}
    line = refused(write(optimizer=optimizer))
    assert "layer_groups.top: must match a tensor" in line


def test_a_prompt_longer_than_the_context_is_refused(write, refused):
    assert "within max_tokens; got" in refused(write(max_tokens=8))


@pytest.fixture
def started(write, tmp_path):
    """A run folder that an interrupted run left."""
    from safemerge.optimize.command import OptimizationFolder

    path = write()
    spec = load_document(path, OptimizeSpec).located(path.parent)
    OptimizationFolder(tmp_path / "r" / "toy").claim(spec)
    return spec


def test_a_folder_with_a_run_asks_for_resume(write, refused, started):
    line = refused(write())
    assert "holds a run of this optimisation already. Continue it with `safemerge optimize" in line
    assert "--resume`" in line


def test_a_resumed_run_must_have_the_same_settings(write, refused, started):
    line = refused(write(alpha=0.5), "--resume")
    assert (
        "must hold a run of the same settings, data and models; got alpha: 0.3 before, 0.5 now"
        in line
    )


def test_workers_do_not_count_as_settings(started, tmp_path):
    from safemerge.optimize.command import OptimizationFolder

    other = started.workers.model_copy(update={"cpus_per_worker": 1.0})
    OptimizationFolder(tmp_path / "r" / "toy").claim(started.model_copy(update={"workers": other}))


def test_the_recipe_records_the_data_that_it_was_found_with(write, tmp_path):
    from safemerge.optimize.command import OptimizationFolder, _finish

    path = write()
    spec = load_document(path, OptimizeSpec).located(path.parent)
    seen = seen_data(spec.checkpoints, {"toy.safety.0": spec.safety[0]})
    folder = tmp_path / "r" / "toy"
    OptimizationFolder(folder).claim(spec, seen=seen)
    plain = MergeRecipe(
        base=spec.base,
        experts=spec.experts,
        method={"name": "task_arithmetic", "weights": {"math": 1.0}},
    )
    losses = {"base": {"safety": 2.0, "expert": 1.0}}
    result = {"recipe": plain.resolved(), "losses": losses}
    found = _finish(spec, OptimizationFolder(folder), result)
    assert (found.path, found.losses) == (folder / "recipe.yaml", losses)
    assert found.recipe.digest == plain.digest
    written = load_document(folder / "recipe.yaml", MergeRecipe)
    assert [item.name for item in written.seen] == ["toy.safety.0"]
    assert written.seen[0].data.source.path == str(tmp_path / "rows.jsonl")
    assert written.digest == plain.digest, "the weights are the same"
    assert "seen" not in plain.resolved()


def test_a_resumed_run_must_have_the_same_rows(write, refused, tmp_path):
    from safemerge.optimize.command import OptimizationFolder

    path = write()
    spec = load_document(path, OptimizeSpec).located(path.parent)
    sets = {"toy.safety.0": spec.safety[0]}
    OptimizationFolder(tmp_path / "r").claim(spec, seen=seen_data(spec.checkpoints, sets))
    (tmp_path / "rows.jsonl").write_text('{"q": "another", "a": "yes"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="must hold a run on the same rows"):
        OptimizationFolder(tmp_path / "r").claim(spec, seen=seen_data(spec.checkpoints, sets))


def test_tables_show_losses_and_weights(write):
    spec = load_document(write(), OptimizeSpec)
    losses = {
        "base": {"safety": 2.0, "expert": 1.0},
        "(optimised)": {"safety": 0.5, "expert": 0.25},
    }
    assert loss_table(spec, losses) == [
        "| cross-entropy of | safety | expert | safety + 0.3 expert |",
        "|------------------|--------|--------|---------------------|",
        "| base             |  2.000 |  1.000 |               2.300 |",
        "| (optimised)      |  0.500 |  0.250 |               0.575 |",
    ]
    recipe = MergeRecipe(
        base=spec.base,
        experts=spec.experts,
        method={"name": "task_arithmetic", "weights": {"math": {"default": 0.5, "a": 1.0}}},
        layer_groups=[{"name": "a", "layers": "0"}],
    )
    assert weight_table(recipe)[2:] == ["| weights.math    | 0.750 | 0.500 |   1.000 |", *(
        ["| lambda          | 1.000 | 1.000 |   1.000 |"]
    )]  # fmt: skip
