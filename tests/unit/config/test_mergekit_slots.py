from safemerge.config.mergekit_file import MergekitModel
from safemerge.config.mergekit_method import model_names, reference

BASE, LORA = MergekitModel("org/base"), MergekitModel("l", "org/base")


def test_an_adapter_names_its_model_unless_that_is_the_base():
    assert reference(LORA, "l", BASE) == {"name": "l", "path": "l"}
    assert reference(LORA, "l", None)["on"] == {"name": "base", "path": "org/base"}


def test_names_are_unique_and_a_stack_has_that_of_its_first_model():
    stack = ((BASE, 0, 2), (LORA, 1, 3))
    other = MergekitModel("x/base")
    assert model_names([BASE, other, stack]) == {
        BASE: "base", other: "base-2", stack: "base-stack",
    }  # fmt: skip
    assert [item["layers"] for item in reference(stack, "s", None)["stack"]] == ["0-1", "1-2"]
