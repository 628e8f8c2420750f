import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestTsvM(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "tsv_m"
