"""Models that a run trained for values of its search."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safemerge.config.variant import expert_settings, settings_text
from safemerge.reports.run import Run


class TrainedModel(NamedTuple):
    """An expert with settings of its own."""

    label: str
    """E.g. ``aligned[booster.lambda=20]``."""
    path: str
    digest: str


def trained_models(run: Run) -> list[TrainedModel]:
    """Return what a run had trained: variants on the grid, then exact values of the front.

    The study was stored before its variants were trained; their digests are in the trials'
    recipes. A variant that no trial ever needed was not trained, and is left out.
    """
    digests = {
        Path(end["path"]).name: str(end["digest"])
        for trial in run.trials
        for _, end in trial.experts()
        if end.get("path") and end.get("digest")
    }
    found = []
    for variant in run.spec.variants:
        path = str(variant.checkpoint.path)
        digest = variant.checkpoint.digest or digests.get(Path(path).name)
        if digest is not None:
            found.append(TrainedModel(variant.label, path, digest))
    for trial in run.trials:
        if trial.exact_of is None or trial.state != "COMPLETE":
            continue
        experts = dict(trial.experts())
        for name, settings in expert_settings(trial.params).items():
            model = TrainedModel(
                f"{name}[{settings_text(settings)}]",
                str(experts[name]["path"]),
                str(experts[name]["digest"]),
            )
            if model.digest not in {item.digest for item in found}:
                found.append(model)
    return found
