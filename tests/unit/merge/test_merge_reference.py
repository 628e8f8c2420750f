import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.errors import MergeError
from safemerge.merge.reference import model_path, open_statistics
from safemerge.weights.adapter import open_checkpoint


def test_a_reference_leads_to_its_folder(tmp_path):
    ref = CheckpointRef(name="math", path=str(tmp_path))
    assert model_path("recipe", ref) == tmp_path


def test_a_model_that_is_still_to_be_made_has_no_folder():
    ref = CheckpointRef(name="math", finetune="math.yaml")
    with pytest.raises(MergeError, match="recipe, model 'math': must be a folder by now"):
        model_path("recipe", ref)


def test_statistics_that_are_still_to_be_gathered_cannot_be_opened(tiny_base):
    ref = CheckpointRef.model_validate(
        {"name": "math", "path": str(tiny_base), "statistics": {"gather": "fisher.yaml"}}
    )
    with pytest.raises(MergeError, match=r"statistics must be a folder by now; got 'fisher.yaml'"):
        open_statistics("recipe", ref, open_checkpoint(tiny_base), check=False)
