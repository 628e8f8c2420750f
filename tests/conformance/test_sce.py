import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestSce(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "sce"
