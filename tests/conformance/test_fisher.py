import pytest

from safemerge.testing.merge_cases import MergeMethodCases


class TestFisher(MergeMethodCases):
    @pytest.fixture
    def method_name(self):
        return "fisher"
