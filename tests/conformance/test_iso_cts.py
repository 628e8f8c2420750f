import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestIsoCts(TaskVectorMethodCases):
    returns_one_expert = False

    @pytest.fixture
    def method_name(self):
        return "iso_cts"
