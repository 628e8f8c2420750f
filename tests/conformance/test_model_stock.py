import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestModelStock(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "model_stock"
