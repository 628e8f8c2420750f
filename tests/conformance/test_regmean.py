import pytest

from safemerge.testing.merge_cases import MergeMethodCases


class TestRegMean(MergeMethodCases):
    @pytest.fixture
    def method_name(self):
        return "regmean"
