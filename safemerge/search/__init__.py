"""The search: spaces to recipes, ask and tell, states, resume. The only user of Optuna."""

from safemerge.search.records import Failure, Proposal
from safemerge.search.space import Reference, Suggestion, reference_recipes, suggest
from safemerge.search.study import SearchStudy

__all__ = [
    "Failure",
    "Proposal",
    "Reference",
    "SearchStudy",
    "Suggestion",
    "reference_recipes",
    "suggest",
]
