import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestRam(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "ram"
