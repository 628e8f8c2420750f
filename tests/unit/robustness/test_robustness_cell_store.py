import pytest

from safemerge.errors import StudyError
from safemerge.robustness.cell_store import CellStore
from tests.unit.measuring import finished, measurement


@pytest.fixture
def spec():
    return measurement()


@pytest.fixture
def store(spec, tmp_path):
    return CellStore(tmp_path / "toy").open(spec)


def test_finished_cells_are_found_again_in_the_grids_order(store, spec):
    cells = spec.cells()
    for cell in reversed(cells[:3]):
        store.append(finished(cell, harmful=1))
    store.write_keys([cell.label for cell in cells])
    found = CellStore(store.folder).grid_records()
    assert [record.cell for record in found] == cells[:3]


def test_cells_of_other_settings_are_kept_and_left_out(store, spec):
    cell = spec.cells()[0]
    store.append(finished(cell, harmful=1, key="old"))
    store.append(finished(cell, harmful=2, key="new"))
    store.write_keys(["new"])
    assert [record.key for record in store.grid_records()] == ["new"]
    assert len(store.records()) == 2


def test_a_failed_cell_is_replaced_by_its_second_try(store, spec):
    cell = spec.cells()[0]
    store.append(finished(cell, harmful=0, reason="a worker was lost"))
    store.append(finished(cell, harmful=1))
    (record,) = store.records()
    assert record.state == "COMPLETE"


def test_a_torn_last_line_is_moved_aside_and_the_rest_kept(store, spec):
    store.append(finished(spec.cells()[0], harmful=1))
    with store.cells_path.open("a") as file:
        file.write('{"key": "half')
    again = CellStore(store.folder).open(spec)
    assert len(again.records()) == 1
    assert store.cells_path.with_name("cells.jsonl.torn").exists()


def test_a_damaged_line_is_named(store, spec):
    store.append(finished(spec.cells()[0], harmful=1))
    store.cells_path.write_text("{}\n" + store.cells_path.read_text())
    store.cells_path.with_suffix(".digest").unlink()  # as of an earlier version
    with pytest.raises(StudyError, match=r"cells\.jsonl, line 1: damaged at key"):
        store.records()


def test_an_edited_cell_is_refused_until_it_is_accepted(store, spec):
    store.append(finished(spec.cells()[0], harmful=1))
    text = store.cells_path.read_text()
    store.cells_path.write_text(text.replace("COMPLETE", "FAIL"))
    with pytest.raises(StudyError, match=r"cells\.jsonl, line 1: must be as it was written"):
        store.records()
    kept = store.folder / "cells.digest.old-1"
    assert store.accept_records() == {store.cells_path: kept}
    assert [record.state for record in store.records()] == ["FAIL"]


def test_cells_of_an_earlier_version_are_read_and_get_digests(store, spec):
    store.append(finished(spec.cells()[0], harmful=1))
    digests = store.cells_path.with_suffix(".digest")
    digests.unlink()
    again = CellStore(store.folder).open(spec)
    assert len(again.records()) == 1
    again.append(finished(spec.cells()[1], harmful=0))
    assert len(digests.read_text().splitlines()) == 2


def test_a_folder_of_another_measurement_is_refused(store):
    with pytest.raises(StudyError, match="must hold the measurement 'other'; got 'toy'"):
        CellStore(store.folder).open(measurement(name="other"))


def test_a_grid_that_grew_continues_in_the_same_folder(store, spec):
    store.append(finished(spec.cells()[0], harmful=1))
    wider = measurement(seeds=[1, 2, 3, 4])
    again = CellStore(store.folder).open(wider)
    assert again.document().config.seeds == [1, 2, 3, 4]
    assert len(again.records()) == 1


def test_a_folder_without_a_measurement_is_said_so(tmp_path):
    with pytest.raises(StudyError, match="no such measurement"):
        CellStore(tmp_path).document()
    assert CellStore(tmp_path).grid_records() == []


def test_another_format_is_refused(store):
    path = store.folder / "robustness_spec.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(StudyError, match="format must be 1; got 9"):
        store.document()
