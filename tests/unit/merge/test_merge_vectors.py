import pytest
import torch

from safemerge.merge import merge_tensor
from safemerge.merge.interpolate import slerp
from safemerge.testing.conformance import build_method, random_tensor


@pytest.mark.parametrize("vectors", ["rows", "columns"])
def test_every_vector_is_interpolated_by_itself(vectors):
    base, first, second = (random_tensor((5, 7), seed=seed) for seed in range(3))
    method = build_method("nuslerp", {"a": 0.6, "b": 0.2}).model_copy(update={"vectors": vectors})
    experts = {"a": first, "b": second}
    merged = merge_tensor(method, tensor="w", base=base, experts=experts)
    axis = 0 if vectors == "rows" else 1
    both = (first.unbind(axis), second.unbind(axis))
    parts = [slerp(a, b, t=0.25) for a, b in zip(*both, strict=True)]
    torch.testing.assert_close(merged, torch.stack(parts, dim=axis), rtol=1e-5, atol=1e-6)


def test_model_stock_by_row_is_that_of_every_row():
    base, first, second = (random_tensor((4, 6), seed=seed) for seed in range(3))
    method = build_method("model_stock", {"a": 1.0, "b": 1.0})
    by_row = method.model_copy(update={"vectors": "rows"})
    merged = merge_tensor(by_row, tensor="w", base=base, experts={"a": first, "b": second})
    for row in range(4):
        experts = {"a": first[row], "b": second[row]}
        alone = merge_tensor(method, tensor="w", base=base[row], experts=experts)
        torch.testing.assert_close(merged[row], alone, rtol=1e-5, atol=1e-6)
