import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestDella(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "della"
