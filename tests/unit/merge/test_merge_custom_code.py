import json
import shutil

import pytest

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointError
from safemerge.merge import write_merged
from safemerge.merge.custom_code import code_notices, custom_code
from safemerge.testing.pico import change_config
from safemerge.weights import open_checkpoint

NEVER_RUN = "raise RuntimeError('custom code was run')\n"
AUTO_MAP = {
    "AutoConfig": "configuration_my.MyConfig",
    "AutoModelForCausalLM": "modeling_my.MyModel",
}


@pytest.fixture
def folder(tiny_base, tmp_path):
    """A model of its own code: a config, a model that imports it, and a helper of that."""
    copied = shutil.copytree(tiny_base, tmp_path / "base")
    (copied / "configuration_my.py").write_text(NEVER_RUN)
    (copied / "modeling_my.py").write_text(
        f"from .configuration_my import MyConfig\nfrom .helper import f\n{NEVER_RUN}"
    )
    (copied / "helper.py").write_text(f"from .modeling_my import MyModel\n{NEVER_RUN}")
    (copied / "unrelated.py").write_text(NEVER_RUN)
    change_config(copied, auto_map=AUTO_MAP, model_type="my_model")
    return copied


def names(code):
    return [file.name for file in code.files]


def merged(folder, expert, out):
    change_config(expert, **json.loads((folder / "config.json").read_text()))
    refs = [{"name": path.name, "path": str(path)} for path in (folder, expert)]
    method = {"name": "task_arithmetic", "weights": {expert.name: 1.0}}
    recipe = MergeRecipe.model_validate({"base": refs[0], "experts": refs[1:], "method": method})
    opened = {path.name: open_checkpoint(path) for path in (folder, expert)}
    return write_merged(recipe, opened, out)


@pytest.fixture
def expert(tiny_expert, tmp_path):
    return shutil.copytree(tiny_expert, tmp_path / "expert")


def test_code_that_a_config_names_and_what_it_imports_go_along(folder, expert, tmp_path):
    out = merged(folder, expert, tmp_path / "out")
    copied = {"configuration_my.py", "helper.py", "modeling_my.py"}
    assert {file.name for file in out.glob("*.py")} == copied
    assert (out / "helper.py").read_text() == (folder / "helper.py").read_text()
    assert json.loads((out / "config.json").read_text())["auto_map"] == AUTO_MAP
    card = (out / "README.md").read_text()
    assert "custom code is copied and not run: configuration_my.py, helper.py" in card
    assert "knows no model_type 'my_model'" in card
    assert str(tmp_path) not in card


def test_code_of_the_tokenizer_goes_along(folder):
    auto_map = {"AutoTokenizer": ["tokenization_my.MyTokenizer", None]}
    document = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**document, "auto_map": auto_map}))
    (folder / "tokenization_my.py").write_text(NEVER_RUN)
    assert "tokenization_my.py" in names(custom_code(open_checkpoint(folder)))


def test_missing_code_of_a_model_that_transformers_lacks_is_refused(folder):
    (folder / "helper.py").unlink()
    words = r"auto_map: its code must be beside it, .*'my_model'; got no helper\.py"
    with pytest.raises(CheckpointError, match=words):
        custom_code(open_checkpoint(folder))


def test_missing_code_of_a_model_that_transformers_has_is_no_longer_named(
    folder, expert, tmp_path
):
    change_config(folder, model_type="llama")
    (folder / "modeling_my.py").unlink()
    out = merged(folder, expert, tmp_path / "out")
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    assert "code that is not there (modeling_my.py)" in (out / "README.md").read_text()


def test_code_on_the_hub_is_said_not_to_be_copied(folder):
    change_config(folder, auto_map={"AutoConfig": "someone/else--configuration_x.XConfig"})
    code = custom_code(open_checkpoint(folder))
    assert (code.files, code.elsewhere) == ((), ("someone/else",))
    assert "takes code from the hub (someone/else)" in code_notices(code)[0]


@pytest.mark.parametrize("reference", ["../../secret.Class", "modeling_my", "a.b.C", "/etc/x.Y"])
def test_names_that_lead_elsewhere_are_refused(reference, folder):
    change_config(folder, auto_map={"AutoModel": reference})
    with pytest.raises(CheckpointError, match=r"must name classes as module\.Class"):
        custom_code(open_checkpoint(folder))


def test_code_that_is_no_text_is_refused(folder):
    (folder / "helper.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"helper\.py: custom code must be readable text"):
        custom_code(open_checkpoint(folder))


def test_a_model_without_custom_code_has_none(tiny_base):
    code = custom_code(open_checkpoint(tiny_base))
    assert code == ((), (), ())
    assert code_notices(code) == ()
