import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestDareLinear(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "dare_linear"
