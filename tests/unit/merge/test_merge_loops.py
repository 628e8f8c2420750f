import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from safemerge.merge.compiled import cast, code, loops
from safemerge.merge.mask import keep_mask, mask_key


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 2000), (1023, 1025), (2999, 3000)])
def test_only_the_entries_of_a_range_are_written(start, stop):
    model, out = torch.randn(3000), torch.full((3000,), 7.0)
    ones = np.ones(1, dtype=np.float32)
    none = np.zeros(1, dtype=np.int64)
    answer = loops.merge_range(
        0, code.NO_BASE, np.array([model.data_ptr()]), np.array([code.FLOAT32]),
        out.data_ptr(), code.FLOAT32, start, stop, ones, np.float32(1.0), code.PLAIN,
        ones, none, ones, none, np.zeros((1, 2), dtype=np.int32), np.zeros(1, dtype=np.int32),
        ones, code.SUM, np.float32(0.0), np.float32(0.0), none,
        np.zeros((1, 1), dtype=np.int32), np.ones((1, 1), dtype=np.float32),
    )  # fmt: skip
    assert answer == code.FINE
    assert torch.equal(out[start:stop], model[start:stop])
    assert bool((out[:start] == 7.0).all())
    assert bool((out[stop:] == 7.0).all())


def test_random_words_decide_as_masks_do():
    key = mask_key(3, "tensor", "expert")
    expected = keep_mask(3, "tensor", "expert", 100, 400, 0.5).tolist()
    for at, kept in enumerate(expected, start=100):
        counter = np.int32((key.first + at + 2**31) % 2**32 - 2**31)
        assert (_word(counter, np.int32(key.second)) < 0) is kept


def _word(counter, second):
    """The word of one counter, through an array of one entry that is dropped or not."""
    value = np.ones(1, dtype=np.float32)
    loops._drop(value, 1, counter, second, np.int32(0), np.float32(1.0))
    return -1 if value[0] else 1


@pytest.mark.parametrize("kind", [code.FLOAT32, code.BFLOAT16, code.FLOAT16])
def test_what_is_not_finite_is_seen_when_it_is_stored(kind):
    place = np.zeros(9, dtype=np.float32)
    values = np.arange(9, dtype=np.float32)
    assert not cast.store(place.ctypes.data, kind, 0, 9, values)
    for broken in (np.nan, np.inf, -np.inf):
        values[4] = broken
        assert cast.store(place.ctypes.data, kind, 0, 9, values)
        assert not cast.store(place.ctypes.data, kind, 0, 4, values)
