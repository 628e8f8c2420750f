import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestConsensusTa(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "consensus_ta"
