"""A stage's state comes back as it was; one that does not fit is told as such."""

import pytest
import torch

from safemerge.errors import TrainingError
from safemerge.training.method import Method
from safemerge.training.state import load_state, save_state


class Counting(Method):
    """A step that remembers how often it was taken."""

    def __init__(self):
        self.taken = 0

    def __call__(self, step, batch):
        raise NotImplementedError

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]


def stage(seed, size=3):
    torch.manual_seed(seed)
    model = torch.nn.Linear(size, 2)
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1),
        "method": Counting(),
    }


def train(state):
    state["optimizer"].zero_grad()
    state["model"](torch.ones(1, state["model"].in_features)).square().sum().backward()
    state["optimizer"].step()
    state["method"].taken += 1


def test_a_state_goes_on_bit_for_bit(tmp_path):
    first = stage(0)
    train(first)
    save_state(tmp_path, step=1, **first)
    second = stage(1)
    assert load_state(tmp_path, **second) == 1
    assert second["method"].taken == 1
    train(first)
    train(second)
    for one, other in zip(first["model"].parameters(), second["model"].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("change", ["method", "weights", "size", "cut"])
def test_a_state_that_does_not_fit_is_told(tmp_path, change):
    state = stage(0)
    train(state)
    save_state(tmp_path, step=1, **state)
    file = tmp_path / "state.pt"
    written = torch.load(file, weights_only=True)
    if change == "method":
        written["method"] = {"counted": 1}
    if change == "weights":
        written["weights"] = {"model.weight": torch.zeros(2, 3)}
    torch.save(written, file)
    if change == "cut":
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(TrainingError, match=r"this version of safemerge wrote.*Remove the stage"):
        load_state(tmp_path, **stage(0, size=4 if change == "size" else 3))
