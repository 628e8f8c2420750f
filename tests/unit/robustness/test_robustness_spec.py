import pytest

from safemerge.config.document import parse_document
from safemerge.errors import ConfigError
from safemerge.robustness.attack_spec import attack_stage
from safemerge.robustness.spec import Cell, RobustnessSpec

REVIEWS = {"kind": "generator", "name": "reviews", "split": "train", "count": 100}
UNSAFE = {"kind": "package", "name": "do-not-answer", "start": 700}


def suite(name, task):
    prompts = {"source": {"kind": "file", "path": "asked.jsonl"}, "label": "label"}
    return {"name": name, "task": task, "search": prompts, "report": prompts}


DOCUMENT = {
    "kind": "robustness",
    "name": "toy",
    "methods": [
        {"name": "sft", "align": "sft.yaml"},
        {"name": "booster", "align": "booster.yaml"},
        {"name": "merge", "recipe": "merge.yaml"},
    ],
    "seeds": [1, 2],
    "attacks": [
        {
            "mode": "fresh",
            "poison_ratios": [0.0, 0.5],
            "num_samples": [20, 40],
            "learning_rates": [1e-3],
        },
        {"mode": "same", "poison_ratios": [0.5], "num_samples": [40], "learning_rates": [1e-3]},
    ],
    "finetune": {
        "data": [{"source": REVIEWS, "response": "{label}"}],
        "poison": {"source": UNSAFE, "response": "stand-in"},
        "batch_size": 8,
        "epochs": 2,
    },
    "harm": suite("harm", {"kind": "harm"}),
    "accuracy": suite("mood", {"kind": "classification", "labels": ["positive", "negative"]}),
}


def spec(**changes):
    return parse_document({**DOCUMENT, **changes}, RobustnessSpec, where="f.yaml")


def test_the_grid_is_the_product_of_its_lists_seed_by_seed():
    cells = spec().cells()
    # Three models before; two p x two n for three models; one for the two with an adapter.
    assert len(cells) == 2 * (3 + 2 * 2 * 3 + 2)
    assert len(set(cells)) == len(cells)
    assert [cell.seed for cell in cells] == [1] * 17 + [2] * 17
    assert [cell.mode for cell in cells[:3]] == [None] * 3
    assert {cell.method for cell in cells if cell.mode == "same"} == {"sft", "booster"}


def test_methods_meet_the_same_attack_one_after_the_other():
    attacked = [cell for cell in spec().cells() if cell.mode == "fresh"]
    assert [cell.method for cell in attacked[:3]] == ["sft", "booster", "merge"]
    assert len({cell.condition for cell in attacked[:3]}) == 1


def test_pairs_are_the_declared_ones_else_each_against_the_first():
    assert spec().pairs == [("booster", "sft"), ("merge", "sft")]
    assert spec(compare=[["merge", "booster"]]).pairs == [("merge", "booster")]


def test_an_attack_takes_the_first_rows_in_the_poison_ratios_shares():
    cell = Cell(
        method="sft", seed=3, mode="fresh", poison_ratio=0.25, num_samples=40, learning_rate=1e-4
    )
    stage = attack_stage(spec(), cell, base="/hardened")
    assert stage.data[0].source.stop == 30
    assert stage.poison.ratio == 0.25
    assert (stage.poison.data.source.start, stage.poison.data.source.stop) == (700, 710)
    assert stage.steps == 40 * 2 / 8
    assert (stage.seed, stage.learning_rate, stage.base.path) == (3, 1e-4, "/hardened")
    assert (stage.output, stage.parameters) == ("adapter", "lora")


def test_a_benign_attack_has_no_poison_and_an_all_harmful_one_draws_nothing_else():
    fields = {"method": "sft", "seed": 0, "mode": "fresh", "num_samples": 40, "learning_rate": 1.0}
    assert attack_stage(spec(), Cell(**fields)).poison is None
    assert attack_stage(spec(), Cell(**fields, poison_ratio=1.0)).poison.ratio == 1.0


def test_modes_train_the_hardened_adapter_a_fresh_one_or_everything():
    fields = {"method": "sft", "seed": 0, "num_samples": 40, "learning_rate": 1.0}
    lora = {"rank": 2, "first_layer": 1}
    fine = spec(finetune={**DOCUMENT["finetune"], "lora": lora})
    same = attack_stage(fine, Cell(**fields, mode="same"), adapter="/adapter")
    fresh = attack_stage(fine, Cell(**fields, mode="fresh"))
    full = attack_stage(fine, Cell(**fields, mode="full"))
    assert (same.adapter, same.parameters) == ("/adapter", "lora")
    assert (fresh.adapter, fresh.lora.rank, fresh.parameters) == (None, 2, "lora")
    assert (full.parameters, full.output) == ("full", "dense")


def test_a_set_that_would_get_no_sample_is_named():
    data = DOCUMENT["finetune"]["data"] + [{"source": REVIEWS, "response": "a", "weight": 1e-6}]
    fine = spec(finetune={**DOCUMENT["finetune"], "data": data})
    cell = Cell(method="sft", seed=0, mode="fresh", num_samples=40, learning_rate=1.0)
    with pytest.raises(ConfigError, match=r"finetune\.data\.1: must give at least one sample"):
        attack_stage(fine, cell)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("methods/0", {"name": "a"}, "exactly one of align, path, hub, package, recipe must be"),
        ("methods/1/name", "sft", "methods' names must be unique; got 'sft'"),
        ("seeds", [1, 1], "seeds must be unique; got '1'"),
        ("seeds", [-1], "seeds must be in"),
        ("attacks/0/poison_ratios", [1.5], "poison_ratios must be within [0, 1]; got 1.5"),
        ("attacks/0/num_samples", [20, 20], "num_samples must be distinct"),
        ("attacks/0/mode", "frsh", "mode"),
        ("attacks/1/mode", "fresh", "attacks.1: repeats an attack of the list"),
        ("harm/task", {"kind": "over_refusal"}, "harm.task.kind: must be harm"),
        ("accuracy/task", {"kind": "harm"}, "accuracy.task.kind: must have an accuracy"),
        ("harm/name", "mood", "suites' names must be unique"),
        ("compare", [["sft", "boster"]], "compare.0: no such method; got 'boster'. Did you mean"),
        ("compare", [["sft", "sft"]], "compare.0: must name two methods"),
        ("finetune/epochs", 0, "finetune.epochs"),
    ],
)
def test_a_wrong_measurement_is_refused(path, value, message, set_in, problems):
    lines = problems(set_in(DOCUMENT, path, value), RobustnessSpec)
    assert any(message in line for line in lines), lines


def test_the_same_adapter_needs_a_method_that_has_one(problems):
    document = {**DOCUMENT, "methods": [{"name": "plain", "path": "/model"}]}
    (line,) = problems(document, RobustnessSpec)
    assert "attacks.1.mode: same continues the adapter" in line


def test_references_are_taken_from_the_files_folder(tmp_path):
    located = spec().located(tmp_path)
    assert located.methods[0].align == str(tmp_path / "sft.yaml")
    assert located.methods[2].recipe == str(tmp_path / "merge.yaml")
    assert located.harm.report.source.path == str(tmp_path / "asked.jsonl")
