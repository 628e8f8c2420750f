import torch

from safemerge.merge import merge_tensor
from safemerge.testing.conformance import build_method, random_tensor


def test_entries_that_stand_out_are_the_experts_and_the_rest_the_bases():
    base = random_tensor((8, 16), seed=0)
    expert = base + 0.1 * random_tensor((8, 16), seed=1)
    method = build_method("arcee_fusion", {"a": 1.0})
    merged = merge_tensor(method, tensor="w", base=base, experts={"a": expert})
    p, q = (torch.softmax(item, dim=-1) + 1e-8 for item in (expert, base))
    score = (expert - base).abs() * (p * (p / q).log()).sum(dim=-1, keepdim=True)
    ordered = score.flatten().sort().values
    first, median, third = (ordered[int(share * 127)] for share in (0.25, 0.5, 0.75))
    taken = score >= median + 1.5 * (third - first)
    assert 0 < int(taken.sum()) < 32
    torch.testing.assert_close(merged, torch.where(taken, expert, base), rtol=0, atol=1e-6)
