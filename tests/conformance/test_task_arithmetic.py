import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestTaskArithmetic(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "task_arithmetic"
