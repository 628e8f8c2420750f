import json
import shutil

import pytest

from safemerge.testing.pico import pico_adapter, pico_base
from safemerge.weights import open_checkpoint
from safemerge.weights.notice import adapter_notices


def opened(base, adapter, named):
    file = adapter / "adapter_config.json"
    config = {**json.loads(file.read_text()), "base_model_name_or_path": named}
    file.write_text(json.dumps(config))
    return {"e": open_checkpoint(adapter, open_checkpoint(base))}


@pytest.fixture
def adapter(tiny_adapter, tmp_path):
    return shutil.copytree(tiny_adapter, tmp_path / "adapter")


def test_another_base_is_named(tiny_base, adapter, tmp_path):
    other = pico_base(tmp_path / "other", seed=9)
    for named in ("someone/another-model", "x" * 5000, str(other)):
        (notice,) = adapter_notices(opened(tiny_base, adapter, named))
        assert f"adapter 'e' names the base '{named}' in its config" in notice
        assert str(tiny_base) in notice


def test_the_same_base_is_not_named(tiny_base, adapter, tmp_path):
    same = shutil.copytree(tiny_base, tmp_path / "My-Model")
    for named in ("org/my-model", str(same), str(tiny_base), None, ""):
        assert adapter_notices(opened(same, adapter, named)) == ()
    assert adapter_notices({"dense": open_checkpoint(tiny_base)}) == ()


def test_a_relative_base_is_taken_from_the_adapter_s_folder(tiny_base, adapter, tmp_path):
    other = pico_base(tmp_path / "other", seed=9)
    (notice,) = adapter_notices(opened(tiny_base, adapter, "../other"))
    assert f"adapter 'e' names the base '{other}' in its config" in notice
    assert adapter_notices(opened(other, adapter, "../other")) == ()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_factors_of_a_tied_embedding_are_named(tiny_base, tmp_path):
    lora = {"target_modules": ["embed_tokens"]}
    adapter = pico_adapter(tiny_base, tmp_path / "tied", seed=1, **lora)
    (notice,) = adapter_notices(opened(tiny_base, adapter, str(tiny_base)))
    assert "adapter 'e' changes 'model.embed_tokens.weight'" in notice
