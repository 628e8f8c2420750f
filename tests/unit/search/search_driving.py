"""What the tests of a search study share: a study at work, told by a landscape."""

from safemerge.search import Failure
from safemerge.store import RunStore
from safemerge.testing.landscapes import (
    SMOOTH,
    LandscapeCrash,
)

# The journal is the same code without SQLite's slow syncs.
FAST = {"storage": "journal", "references": False, "sampler": {"name": "random"}}


def answer(landscape, proposal):
    try:
        return landscape.evaluate(proposal.recipe)
    except LandscapeCrash as error:
        return Failure(str(error))


def finish(study, landscape=SMOOTH, limit=10_000):
    """Evaluate proposals one by one; return the records."""
    records = []
    while len(records) < limit and (proposal := study.ask()) is not None:
        records.append(study.tell(proposal.number, answer(landscape, proposal)))
    return records


def optuna_states(study):
    return [trial.state for trial in study._study.get_trials(deepcopy=False)]


def stored(study):
    return RunStore(study.store.folder).trials()
