import pytest

from safemerge.testing.merge_cases import MergeMethodCases


class TestSlerp(MergeMethodCases):
    @pytest.fixture
    def method_name(self):
        return "slerp"
