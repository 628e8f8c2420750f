"""Every row of the method table against the cases for its kind: no method can be left out."""

import pytest

from safemerge.config.method import METHODS
from safemerge.testing.conformance import (
    MergeMethodCases,
    TaskVectorMethodCases,
    WeightedMethodCases,
)

CHANGE_ONE_EXPERT = {
    "arcee_fusion": "only some of its entries are taken",
    "iso_c": "its singular values are made equal",
    "iso_cts": "its singular values are made equal",
}


def is_weighted(row):
    return "weights" in row.usual


def methods_where(chosen):
    @pytest.fixture(params=[name for name, row in METHODS.items() if chosen(row)])
    def method_name(self, request):
        self.returns_one_expert = request.param not in CHANGE_ONE_EXPERT
        return request.param

    return method_name


class TestWholeWeights(MergeMethodCases):
    method_name = methods_where(lambda row: not row.uses_base)


class TestTaskVectors(TaskVectorMethodCases):
    method_name = methods_where(lambda row: row.uses_base and not is_weighted(row))


class TestWeightedTaskVectors(WeightedMethodCases):
    method_name = methods_where(lambda row: row.uses_base and is_weighted(row))
