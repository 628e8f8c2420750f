import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestDellaLinear(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "della_linear"
