import pytest
from pydantic import ValidationError

from safemerge.config.coefficient import LayerGroup, has_anchors, leaves


@pytest.mark.parametrize(
    ("value", "numbers", "anchored"),
    [
        (0.5, [0.5], False),
        ([0.1, 0.2], [0.1, 0.2], True),
        ({"a": 0.3, "default": 0.4}, [0.3, 0.4], False),
        ({"a": [0.1, 0.9], "default": 0.4}, [0.1, 0.9, 0.4], True),
    ],
)
def test_every_number_of_a_coefficient_is_found(value, numbers, anchored):
    assert list(leaves(value)) == numbers
    assert has_anchors(value) is anchored


def test_a_group_says_its_rule_in_one_line():
    group = LayerGroup(name="some", layers="2-4", kind="mlp", tensors=["*.a", "*.b"])
    assert group.rule == "2-4 and mlp and *.a, *.b"


def test_an_unknown_kind_of_module_is_refused():
    with pytest.raises(ValidationError, match="'attention', 'mlp', 'embeddings' or 'norms'"):
        LayerGroup.model_validate({"name": "some", "kind": "attn"})
