import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestNearSwap(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "nearswap"
