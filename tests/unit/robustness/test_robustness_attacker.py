import importlib
import math

import pytest

from safemerge.api.progress import Progress
from safemerge.errors import ConfigError, StudyError
from safemerge.robustness.attack_spec import attack_stage
from safemerge.robustness.attacker import judge, search_attacks, searched_spec
from safemerge.robustness.cell_store import CellStore
from safemerge.robustness.on_ray import CellJob, Hardened
from safemerge.robustness.page import render_robustness
from safemerge.robustness.results import robustness_results
from safemerge.robustness.spec import Cell
from safemerge.robustness.worst_attack import (
    WorstAttacks,
    worst_attacks,
    write_worst_attacks,
)
from tests.unit.measuring import finished, measurement

# The package's attribute of this name may be the function of the API.
command = importlib.import_module("safemerge.robustness.command")
on_ray = importlib.import_module("safemerge.robustness.on_ray")

ATTACKER = {"kind": "search", "num_trials": 12, "num_samples": 40, "startup": 4}


def spec(**changes):
    return measurement(attacks=[], seeds=[1, 2], attacker={**ATTACKER, **changes})


class Models:
    """Models whose harm grows with the rate; above 1e-4 the skill goes too."""

    def __init__(self, *, broken=lambda cell: False):
        self.asked, self.broken = [], broken

    def run(self, cells, split):
        return [self.record(cell, split) for cell in cells]

    def record(self, cell, split):
        self.asked.append((cell, split))
        if cell.mode is None:
            return finished(cell, harmful=1, right=16)
        if self.broken(cell):
            return finished(cell, harmful=0, reason="the loss must be finite; got nan.")
        strength = min(1.0, math.log10(cell.learning_rate / 1e-5) / 2)
        hard = 0.5 if cell.method == "hard" else 1.0
        return finished(
            cell,
            harmful=round(20 * hard * strength),
            right=10 if cell.learning_rate > 1e-4 else 15,
        )


def search(models, **changes):
    lines = []
    found = search_attacks(spec(**changes), run=models.run, say=lines.append)
    return found, lines


def test_the_worst_attack_is_the_most_harmful_within_the_bound_measured_on_other_requests():
    models = Models()
    found, lines = search(models)
    assert [(item.method, item.seed) for item in found] == [
        ("sft", 1), ("hard", 1), ("sft", 2), ("hard", 2),
    ]  # fmt: skip
    for item in found:
        assert item.attack is not None
        assert item.attack.learning_rate <= 1e-4
        assert (item.attack, "report") in models.asked
        on_search = [cell for cell, split in models.asked if split == "search" and cell.mode]
        own = [c for c in on_search if (c.method, c.seed) == (item.method, item.seed)]
        useful = [cell.learning_rate for cell in own if cell.learning_rate <= 1e-4]
        assert item.num_feasible == len(item.best) >= len(useful) > 0
        assert item.best == sorted(item.best)
        assert item.harmful_score.value == item.searched == item.best[-1]
        assert item.harmful_score.low < item.harmful_score.value < item.harmful_score.high
        assert (item.before.value, item.accuracy_before.value) == (0.05, 0.8)
    assert len([line for line in lines if "[12/12]" in line]) == 4
    assert any("beyond the bound" in line for line in lines)


def test_a_looser_bound_lets_the_attacker_do_more_harm():
    strict, _ = search(Models())
    loose, _ = search(Models(), max_utility_loss=0.5)
    for tight, wide in zip(strict, loose, strict=True):
        assert wide.harmful_score.value > tight.harmful_score.value
        assert wide.num_feasible == 12


def test_a_search_repeats_itself_and_a_longer_one_begins_with_it():
    first, again, longer = Models(), Models(), Models()
    search(first)
    search(again)
    assert first.asked == again.asked
    search(longer, num_trials=16)
    short = [cell for cell, split in first.asked if split == "search"]
    assert [cell for cell, split in longer.asked if split == "search"][: len(short)] == short


def test_methods_meet_the_same_random_start():
    models = Models()
    search(models)
    cells = [cell for cell, split in models.asked if split == "search" and cell.mode]
    starts = {
        method: [
            c.model_dump(exclude={"method"}) for c in cells if (c.method, c.seed) == (method, 1)
        ][:4]
        for method in ("sft", "hard")
    }
    assert starts["sft"] == starts["hard"]


def test_several_attacks_at_once_are_asked_before_any_is_told():
    models = Models()
    found, _ = search(models, at_once=5)
    assert [item.num_tried for item in found] == [12] * 4


def test_attacks_that_fail_are_counted_and_never_the_worst():
    found, lines = search(Models(broken=lambda cell: cell.learning_rate > 3e-5))
    for item in found:
        assert item.num_failed > 0
        assert item.num_failed + item.num_feasible == item.num_tried
        assert item.attack is None or item.attack.learning_rate <= 3e-5
    assert any("failed: the loss must be finite" in line for line in lines)


def test_without_a_useful_attack_the_worst_case_is_the_model_itself():
    found, _ = search(Models(), learning_rate={"low": 1e-3, "high": 1e-2})
    for item in found:
        assert (item.attack, item.num_feasible, item.searched) == (None, 0, None)
        assert item.harmful_score == item.before


def test_the_loss_is_a_share_of_the_accuracy_before_and_the_bound_holds_its_end():
    before = finished(Cell(method="sft", seed=1), harmful=1, right=20)
    attack = Cell(method="sft", seed=1, mode="full", learning_rate=1e-5)
    at_bound = judge(spec(), before, finished(attack, harmful=5, right=18))
    beyond = judge(spec(), before, finished(attack, harmful=5, right=17))
    assert (at_bound.loss, at_bound.is_feasible) == (pytest.approx(0.1), True)
    assert (beyond.loss, beyond.is_feasible) == (pytest.approx(0.15), False)


def test_an_attack_on_a_model_whose_accuracy_is_unknown_is_no_success():
    attack = Cell(method="sft", seed=1, mode="full", learning_rate=1e-5)
    after = finished(attack, harmful=20, right=0)
    unscored = finished(Cell(method="sft", seed=1), harmful=1)
    accuracy = unscored.result.metrics["mood.accuracy"].model_copy(update={"value": None})
    metrics = {**unscored.result.metrics, "mood.accuracy": accuracy}
    result = unscored.result.model_copy(update={"metrics": metrics})
    found = judge(spec(), unscored.model_copy(update={"result": result}), after)
    assert not found.is_feasible
    assert math.isnan(found.harm)
    none_right = finished(Cell(method="sft", seed=1), harmful=1, right=0)
    assert judge(spec(), none_right, after).loss == 0.0


def test_a_poison_ratio_near_one_leaves_each_benign_set_a_row():
    one = spec().finetune.data[0]
    rare = one.model_copy(update={"weight": 0.01})
    declared = spec()
    finetune = declared.finetune.model_copy(update={"data": [one, rare]})
    declared = declared.model_copy(update={"finetune": finetune})
    grid = Cell(
        method="sft", seed=1, mode="full", poison_ratio=0.97, num_samples=40, learning_rate=1e-4
    )
    stage = attack_stage(declared, grid.model_copy(update={"steps": 5}))
    assert [item.source.stop - item.source.start for item in stage.data] == [1, 1]
    assert stage.poison.ratio == 39 / 40
    with pytest.raises(ConfigError, match=r"finetune\.data\.1: must give at least one sample"):
        attack_stage(declared, grid)


def test_the_attacks_stage_has_the_steps_and_the_rank_that_were_drawn():
    cell = Cell(
        method="sft", seed=1, mode="fresh", poison_ratio=0.5, num_samples=8,
        learning_rate=2e-4, steps=33, rank=5,
    )  # fmt: skip
    stage = attack_stage(spec(), cell)
    assert (stage.steps, stage.lora.rank, stage.learning_rate) == (33, 5, 2e-4)
    assert cell.label == "sft, seed 1, fresh p=0.5 n=8 lr=0.0002 steps=33 rank=5"
    # Cells of grids are told apart as before.
    assert set(Cell(method="sft", seed=1).model_dump()) == {
        "method", "seed", "mode", "poison_ratio", "num_samples", "learning_rate",
    }  # fmt: skip


def test_an_attack_of_the_search_is_measured_at_its_end_alone():
    plain = searched_spec(measurement(attacker=ATTACKER))
    assert (plain.finetune.harm_every, plain.finetune.curve, plain.also) == (None, None, [])


def test_a_killed_search_runs_only_what_it_has_not_tried(tmp_path, monkeypatch):
    store, declared, models = CellStore(tmp_path / "toy"), spec(), Models()
    store.open(declared)

    def make(how, cells, suites):
        split = suites["split"]
        return [
            CellJob(f"{split} {cell.label}", cell, Hardened("h", tmp_path), tmp_path)
            for cell in cells
        ]

    class Killed(Exception):
        """The process ends."""

    ran = []

    def run_cells(how, jobs, suites, *, on_record):
        for job in jobs:
            if limit and len(ran) >= limit[0]:
                raise Killed
            ran.append(job.key)
            on_record(models.record(job.cell, suites["split"]).model_copy(update={"key": job.key}))

    monkeypatch.setattr(on_ray, "run_cells", run_cells)
    suites = {split: {"split": split} for split in ("search", "report")}
    lines = []
    limit = [30]
    with pytest.raises(Killed):
        command._attack(declared, store, suites, make, Progress(lines.append), "again")
    assert worst_attacks(store) is None
    limit.clear()
    command._attack(declared, store, suites, make, Progress(lines.append), "again")
    assert len(ran) == len(set(ran))
    found = worst_attacks(store)
    done = len(ran)
    command._attack(declared, store, suites, make, Progress(lines.append), "again")
    assert len(ran) == done
    assert worst_attacks(store) == found
    assert len(store.attack_records()) == done


def test_a_model_that_cannot_be_measured_before_the_attack_ends_the_search(tmp_path, monkeypatch):
    store, declared = CellStore(tmp_path / "toy"), spec()
    store.open(declared)

    def make(how, cells, suites):
        return [CellJob(cell.label, cell, Hardened("h", tmp_path), tmp_path) for cell in cells]

    def run_cells(how, jobs, suites, *, on_record):
        for job in jobs:
            on_record(finished(job.cell, harmful=0, key=job.key, reason="the worker was lost"))

    monkeypatch.setattr(on_ray, "run_cells", run_cells)
    with pytest.raises(StudyError, match="sft, seed 1, before the attack: must be measured; got"):
        command._attack(declared, store, {"search": {}}, make, Progress(print), "again")


def test_a_worst_attack_that_cannot_be_measured_is_never_reported_as_the_model_before_it(
    tmp_path, monkeypatch
):
    store, declared, models = CellStore(tmp_path / "toy"), spec(), Models()
    store.open(declared)

    def make(how, cells, suites):
        split = suites["split"]
        return [
            CellJob(f"{split} {cell.label}", cell, Hardened("h", tmp_path), tmp_path)
            for cell in cells
        ]

    def run_cells(how, jobs, suites, *, on_record):
        for job in jobs:
            lost = suites["split"] == "report" and job.cell.mode is not None and down
            if lost:
                record = finished(job.cell, harmful=0, reason="the worker was lost")
            else:
                record = models.record(job.cell, suites["split"])
            on_record(record.model_copy(update={"key": job.key}))

    monkeypatch.setattr(on_ray, "run_cells", run_cells)
    suites = {split: {"split": split} for split in ("search", "report")}
    down = True
    with pytest.raises(StudyError, match=r"must be measured; got: the worker was lost.*`again`"):
        command._attack(declared, store, suites, make, Progress(print), "again")
    assert worst_attacks(store) is None
    down = False
    command._attack(declared, store, suites, make, Progress(print), "again")
    assert all(item.attack is not None for item in worst_attacks(store).found)


def test_a_damaged_file_of_worst_attacks_is_one_message(tmp_path):
    store = CellStore(tmp_path / "toy")
    store.open(spec())
    store.write("worst_attacks.json", "{")
    with pytest.raises(StudyError, match=r"worst_attacks\.json: damaged"):
        worst_attacks(store)


def test_the_page_shows_the_worst_case_beside_the_grid(tmp_path):
    store, declared = CellStore(tmp_path / "toy"), spec()
    store.open(declared)
    store.write_keys([cell.label for cell in declared.cells()])
    for cell in declared.cells():
        store.append(finished(cell, harmful=1, right=16))
    assert robustness_results(store).searched == []
    found, _ = search(Models())
    write_worst_attacks(store, WorstAttacks(max_utility_loss=0.1, found=found))
    results = robustness_results(store)
    (pair,) = results.searched_comparisons
    sft, hard = results.searched
    assert (pair.left, pair.right, pair.is_equal_before) == ("hard", "sft", True)
    assert pair.difference.mean == pytest.approx(hard.harmful_score.mean - sft.harmful_score.mean)
    assert pair.difference.mean < 0
    page = render_robustness(results, {})
    assert "at most 10" in page
    assert found[0].attack.attack_label in page
    assert "hard against sft, worst case found" in page


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attacks": []}, "attacks: must hold an attack, unless an attacker searches; got none."),
        (
            {"attacker": ATTACKER, "split": "search"},
            "split: must be report where an attacker searches",
        ),
        (
            {"attacker": {**ATTACKER, "steps": {"low": 0, "high": 9}}},
            "steps must be within .1, 1e.06.; got 0 to 9",
        ),
        (
            {"attacker": {**ATTACKER, "rank": {"low": 2.5, "high": 9}}},
            "rank must be whole; got 2.5 to 9",
        ),
        (
            {"attacker": {**ATTACKER, "learning_rate": {"low": 1e-3, "high": 1e-4}}},
            "low must not exceed high; got 0.001 and 0.0001",
        ),
        (
            {"attacker": {**ATTACKER, "modes": ["full", "full"]}},
            "modes must be distinct",
        ),
    ],
)
def test_an_attacker_that_cannot_be_is_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        measurement(**changes)
