import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestWudi(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "wudi"
