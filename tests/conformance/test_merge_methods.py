"""Every merge method of the table obeys the cases: one that is added is tested by being added."""

import pytest

from safemerge.config.method import METHODS
from safemerge.testing.conformance import MergeMethodCases, TaskVectorMethodCases

CHANGES_ONE_EXPERT = {"arcee_fusion", "iso_c", "iso_cts"}
"""Methods that take only some entries of a single expert, or level its singular values."""


class TestMethodsOfWholeWeights(MergeMethodCases):
    @pytest.fixture(params=[row.name for row in METHODS.values() if not row.uses_base])
    def method_name(self, request):
        return request.param


class TestMethodsOfTaskVectors(TaskVectorMethodCases):
    @pytest.fixture(params=[row.name for row in METHODS.values() if row.uses_base])
    def method_name(self, request):
        return request.param

    @pytest.fixture
    def returns_one_expert(self, method_name):
        return method_name not in CHANGES_ONE_EXPERT
