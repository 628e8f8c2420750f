import pytest

from safemerge.testing.merge_cases import MergeMethodCases


class TestNuSlerp(MergeMethodCases):
    @pytest.fixture
    def method_name(self):
        return "nuslerp"
