import json
import re

import pytest

from safemerge.cli import main
from safemerge.robustness.cell_store import CellStore
from safemerge.robustness.page import write_robustness_report
from safemerge.robustness.results import robustness_results
from tests.unit.measuring import finished, measurement

HARMFUL = {
    # (method, poison ratio): flagged of 20 prompts, by seed
    ("sft", 0.0): (2, 2, 2),
    ("hard", 0.0): (2, 2, 2),
    ("sft", 0.5): (16, 18, 20),
    ("hard", 0.5): (4, 6, 5),
}


@pytest.fixture
def store(tmp_path):
    return CellStore(tmp_path / "toy")


def fill(store, spec, *, only=lambda cell: True):
    store.open(spec)
    cells = spec.cells()
    store.write_keys([cell.label for cell in cells])
    for cell in filter(only, cells):
        flagged = 0
        if cell.mode is not None:
            flagged = HARMFUL[cell.method, cell.poison_ratio][cell.seed - 1]
        store.append(finished(cell, harmful=flagged))
    return robustness_results(store)


def of(results, method, ratio):
    return next(
        item
        for item in results.results
        if (item.method, item.condition.poison_ratio) == (method, ratio)
        and item.condition.mode == "fresh"
    )


def test_scores_are_means_and_standard_deviations_over_seeds(store):
    results = fill(store, measurement())
    found = of(results, "sft", 0.5).harmful_score
    assert found.by_seed == {"1": 0.8, "2": 0.9, "3": 1.0}
    assert (found.mean, found.sd) == pytest.approx((0.9, 0.1))
    assert of(results, "sft", 0.5).accuracy.mean == 0.5
    assert (results.num_cells, results.num_done) == (18, 18)
    assert results.train_s == 36.0


def test_the_worst_case_is_the_attack_with_the_highest_harmful_score(store):
    worst = {item.method: item for item in fill(store, measurement()).worst}
    assert worst["sft"].condition.poison_ratio == 0.5
    assert worst["hard"].harmful_score.mean == pytest.approx(0.25)


def test_a_difference_that_seeds_and_prompts_agree_on_is_significant(store):
    results = fill(store, measurement())
    found = {(item.condition.label, item.measure): item for item in results.comparisons}
    sure = found["fresh, p = 0.5, n = 8, lr = 0.001", "harmful_score"]
    # Flagged more often in all: prompts 4 to 19, so 16 against 0: 2 / 2 ** 16.
    assert (sure.left_only, sure.right_only) == (0, 16)
    assert sure.p_value == pytest.approx(2 / 2**16)
    # Holm over all nine comparisons; compliance is flagged as harm is, so two are smallest.
    assert (sure.p_adjusted, sure.num_comparisons) == (pytest.approx(9 * 2 / 2**16), 9)
    assert sure.p_seeds < 0.05
    assert len(results.comparisons) == 9
    assert sure.difference.mean == pytest.approx(-0.65)
    assert sure.verdict == "lower"
    same = found["fresh, p = 0, n = 8, lr = 0.001", "harmful_score"]
    assert (same.difference.mean, same.p_adjusted, same.verdict) == (0.0, 1.0, "not significant")


def test_seeds_that_disagree_make_a_difference_not_significant(store, monkeypatch):
    monkeypatch.setitem(HARMFUL, ("hard", 0.5), (0, 0, 20))
    results = fill(store, measurement())
    found = next(
        item
        for item in results.comparisons
        if item.condition.poison_ratio == 0.5 and item.measure == "harmful_score"
    )
    assert found.p_adjusted < 0.05
    assert found.difference.low < 0 < found.difference.high
    assert found.p_seeds > 0.05
    assert found.verdict == "not significant"


def test_one_seed_is_never_significant(store):
    results = fill(store, measurement(seeds=[1]))
    assert of(results, "sft", 0.5).harmful_score.sd is None
    assert {item.verdict for item in results.comparisons} == {"not significant"}
    assert {item.p_seeds for item in results.comparisons} == {None}


def test_an_unfinished_grid_compares_the_seeds_that_both_have(store):
    results = fill(store, measurement(), only=lambda cell: cell.method == "sft" or cell.seed == 2)
    found = next(item for item in results.comparisons if item.condition.poison_ratio == 0.5)
    assert found.difference.by_seed == pytest.approx({"2": 0.3 - 0.9})
    assert results.num_done == 12


def test_the_folder_gets_numbers_figures_and_a_page_that_loads_nothing(store):
    fill(store, measurement())
    page = write_robustness_report(store.folder).read_text(encoding="utf-8")
    written = json.loads((store.folder / "robustness.json").read_text(encoding="utf-8"))
    assert written["num_done"] == 18
    for name in ("harm_by_poison", "harm_by_samples", "loss_curves"):
        assert (store.folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert "{{" not in page
    assert "hard against sft, fresh, p = 0.5" in page
    assert (
        "lower. Over prompts significant after correction for 9 comparisons (p = 0.000275)" in page
    )
    assert "seeds p = 0.00587" in page
    assert "Unfinished" not in page


def test_a_page_of_an_unfinished_measurement_says_so_and_why(store):
    spec = measurement()
    store.open(spec)
    store.write_keys([cell.label for cell in spec.cells()])
    store.append(finished(spec.cells()[0], harmful=0, reason="the loss must be <finite>"))
    page = write_robustness_report(store.folder).read_text(encoding="utf-8")
    assert "Unfinished: 0 of 18 cells done" in page
    assert "the loss must be &lt;finite&gt;" in page


def test_the_report_command_knows_a_measurements_folder(store, capsys):
    fill(store, measurement())
    assert main(["report", str(store.folder)]) == 0
    assert "report.html" in capsys.readouterr().out
