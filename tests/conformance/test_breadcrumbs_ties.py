import pytest

from safemerge.testing.merge_cases import TaskVectorMethodCases


class TestBreadcrumbsTies(TaskVectorMethodCases):
    @pytest.fixture
    def method_name(self):
        return "breadcrumbs_ties"
