import pytest

from safemerge.testing.merge_cases import MergeMethodCases


class TestMultiSlerp(MergeMethodCases):
    @pytest.fixture
    def method_name(self):
        return "multi_slerp"
