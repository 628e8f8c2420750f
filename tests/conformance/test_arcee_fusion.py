import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestArceeFusion(TaskVectorMethodCases):
    returns_one_expert = False  # only some of its entries are taken

    @pytest.fixture
    def method_name(self):
        return "arcee_fusion"
