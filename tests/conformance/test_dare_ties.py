import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestDareTies(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "dare_ties"
