"""The search: spaces to recipes, ask and tell, states, resume. The only user of Optuna."""

from safemerge.search.flight import FlightFile
from safemerge.search.records import Failure, Proposal
from safemerge.search.recovery import finished_trials
from safemerge.search.space import Reference, Suggestion, reference_recipes, suggest
from safemerge.search.study import SearchStudy
from safemerge.search.unseen import Drawn, is_covered
from safemerge.search.warm_start import start_plans, study_references

__all__ = [
    "Drawn",
    "Failure",
    "FlightFile",
    "Proposal",
    "Reference",
    "SearchStudy",
    "Suggestion",
    "finished_trials",
    "is_covered",
    "reference_recipes",
    "start_plans",
    "study_references",
    "suggest",
]
