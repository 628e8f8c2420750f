import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestTies(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "ties"
