import pytest
import torch
from safetensors import safe_open

from safemerge.merge import shard
from safemerge.merge.shard import ShardWriter

FILES = {
    "first.safetensors": {
        "odd": (torch.bfloat16, (3,)),
        "wide": (torch.float32, (2, 5)),
        "scalar": (torch.float16, ()),
        "none": (torch.float32, (0, 4)),
    },
    "second.safetensors": {"other": (torch.bfloat16, (7, 11))},
}


def values(dtype, shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("own_memory", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_tensors_are_read_as_they_were_put(tmp_path, own_memory, backwards):
    expected = {
        name: values(*entry, at)
        for entries in FILES.values()
        for at, (name, entry) in enumerate(entries.items())
    }
    names = list(expected)[:: -1 if backwards else 1]
    with ShardWriter(tmp_path, FILES) as shards:
        for name in names:
            tensor = expected[name]
            if own_memory:
                shards.put(name, tensor.clone())
            else:
                buffer = shards.buffer(name, tensor.dtype, tuple(tensor.shape))
                shards.put(name, buffer.copy_(tensor))
    for file, entries in FILES.items():
        with safe_open(tmp_path / file, framework="pt") as opened:
            assert set(opened.keys()) == set(entries)
            assert opened.metadata() == {"format": "pt"}
            for name in entries:
                assert torch.equal(opened.get_tensor(name), expected[name])


def test_buffers_are_used_again(tmp_path):
    files = {"x.safetensors": {str(at): (torch.float32, (1000,)) for at in range(20)}}
    places = set()
    with ShardWriter(tmp_path, files) as shards:
        for name, entry in files["x.safetensors"].items():
            buffer = shards.buffer(name, *entry)
            places.add(buffer.data_ptr())
            shards.put(name, buffer.fill_(float(name)))
    assert len(places) == 2
    with safe_open(tmp_path / "x.safetensors", framework="pt") as opened:
        assert all(bool((opened.get_tensor(str(at)) == at).all()) for at in range(20))


def test_a_disk_that_fails_later_is_told(tmp_path, monkeypatch):
    whole = shard.os.pwrite

    def fail(handle, content, offset):
        if len(content) == 40:
            raise OSError(28, "No space left on device")
        return whole(handle, content, offset)

    monkeypatch.setattr(shard.os, "pwrite", fail)
    shards = ShardWriter(tmp_path, FILES)
    shards.put("wide", torch.zeros(2, 5))
    with pytest.raises(OSError, match="No space left"):
        shards.__exit__(None, None, None)
