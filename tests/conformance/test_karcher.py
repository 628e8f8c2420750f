import pytest

from safemerge.testing.merge_cases import MergeMethodCases


class TestKarcher(MergeMethodCases):
    @pytest.fixture
    def method_name(self):
        return "karcher"
