import pytest
import torch

from safemerge.config.training import LisaSpec
from safemerge.training.lisa import Proximal, lisa_state

SET = {"source": {"kind": "file", "path": "/data/safe.jsonl"}, "response": "{answer}"}


def spec(**fields):
    given = {"data": [SET], "alignment_steps": 2, "user_steps": 3, "warmup": 0.0, "rho": 0.5}
    return LisaSpec.model_validate({**given, **fields})


def test_states_alternate_and_begin_with_alignment():
    found = [lisa_state(spec(), step)[0] for step in range(12)]
    assert "".join(found) == "aauuuaauuuaa"


def weight(value):
    return torch.nn.Parameter(torch.tensor(value))


def test_each_state_is_pulled_to_where_the_other_one_ended():
    """Weights are set by hand after each step; the anchor by hand beside them."""
    parameter = weight([0.0, 0.0])
    proximal = Proximal([parameter], spec(), steps=20)
    # End of alignment is step 1, of the user's state step 4, of alignment again step 6.
    anchors = {0: 0.0, 1: 0.0, 2: 2.0, 3: 2.0, 4: 2.0, 5: 5.0, 6: 5.0, 7: 7.0}
    for step, anchor in anchors.items():
        parameter.grad = torch.tensor([1.0, 1.0])
        proximal.enter(step)
        term = proximal.pull(step)
        away = float(step) - anchor
        assert parameter.grad.tolist() == [1 + 0.5 * away] * 2
        assert float(term) == 0.25 * 2 * away**2
        parameter.data.fill_(step + 1.0)


def test_the_pull_is_the_gradient_of_the_term():
    first, second = weight([[1.0, -2.0]]), weight([3.0])
    proximal = Proximal([first, second], spec(rho=0.3), steps=9)
    start = [first.detach().clone(), second.detach().clone()]
    with torch.no_grad():
        first.add_(1.5)
        second.sub_(4.0)
    pairs = zip((first, second), start, strict=True)
    term = 0.15 * sum((p - s).square().sum() for p, s in pairs)
    expected = torch.autograd.grad(term, [first, second])
    for parameter in (first, second):
        parameter.grad = torch.zeros_like(parameter)
    proximal.enter(0)
    assert float(proximal.pull(0)) == pytest.approx(term.item())
    torch.testing.assert_close([first.grad, second.grad], list(expected))


@pytest.mark.parametrize(
    ("fields", "step", "pulls"),
    [
        ({"warmup": 0.1}, 1, False),
        ({"warmup": 0.1}, 2, True),
        ({"rho": 0.0}, 5, False),
        ({"warmup": 1.0}, 19, False),
    ],
)
def test_the_pull_begins_after_the_warm_up(fields, step, pulls):
    parameter = weight([1.0])
    proximal = Proximal([parameter], spec(**fields), steps=20)
    parameter.grad = torch.zeros(1)
    parameter.data.fill_(2.0)
    assert (proximal.pull(step) is not None) is pulls
    assert bool(parameter.grad.any()) is pulls


def test_anchors_are_kept_over_a_resume():
    parameter = weight([1.0])
    first = Proximal([parameter], spec(), steps=20)
    parameter.data.fill_(4.0)
    first.enter(2)
    parameter.data.fill_(9.0)
    second = Proximal([parameter], spec(), steps=20)
    second.load_state_dict(first.state_dict())
    assert {k: v[0].item() for k, v in second.state_dict().items()} == {
        "alignment": 4.0,
        "user": 1.0,
    }
