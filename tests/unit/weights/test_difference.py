import pytest
from safetensors.torch import load_file, save_file

from safemerge.testing.pico import pico_adapter
from safemerge.weights.adapter import open_checkpoint
from safemerge.weights.difference import changed_names


def test_a_moved_expert_differs_in_every_tensor(tiny_base, tiny_expert):
    base = open_checkpoint(tiny_base)
    assert changed_names(base, open_checkpoint(tiny_expert)) == set(base.distinct_names)


def test_the_base_differs_from_itself_in_nothing(tiny_base):
    base = open_checkpoint(tiny_base)
    assert changed_names(base, base) == frozenset()


def test_one_changed_entry_counts_and_is_remembered(tiny_base, tmp_path, monkeypatch):
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tiny_base / "model.safetensors")
    weights["model.norm.weight"][3] += 0.25
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    base, expert = open_checkpoint(tiny_base), open_checkpoint(tmp_path)
    assert changed_names(base, expert) == {"model.norm.weight"}

    monkeypatch.setattr(expert, "tensor", lambda name: pytest.fail("read again"))
    assert changed_names(base, expert) == {"model.norm.weight"}


@pytest.mark.parametrize(("scale", "count"), [(0.05, 6), (0.0, 0)])
def test_an_adapter_differs_where_its_product_is_not_zero(tiny_base, tmp_path, scale, count):
    base = open_checkpoint(tiny_base)
    adapter = open_checkpoint(pico_adapter(tiny_base, tmp_path, seed=1, scale=scale), base)
    assert len(changed_names(base, adapter)) == count
