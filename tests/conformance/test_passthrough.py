import pytest

from safemerge.testing.merge_cases import MergeMethodCases


class TestPassthrough(MergeMethodCases):
    @pytest.fixture
    def method_name(self):
        return "passthrough"
