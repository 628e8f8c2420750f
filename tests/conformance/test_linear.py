import pytest

from safemerge.testing.merge_cases import MergeMethodCases


class TestLinear(MergeMethodCases):
    @pytest.fixture
    def method_name(self):
        return "linear"
