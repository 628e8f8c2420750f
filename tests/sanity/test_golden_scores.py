"""The version of scoring is raised whenever the same answers get other scores."""

import json

from safemerge.config.inputs import SCORING_VERSION
from tests.sanity import golden_scores

ADVICE = (
    "scores of the same answers changed, so runs of before and after must not be mixed: raise "
    "SCORING_VERSION in safemerge/config/inputs.py, then `python -m tests.sanity.golden_scores`"
)


def test_equal_answers_get_equal_scores_within_one_version_of_scoring():
    stored = json.loads(golden_scores.FILE.read_text(encoding="utf-8"))
    assert stored["scoring_version"] == SCORING_VERSION, ADVICE
    assert golden_scores.scores() == stored["scores"], ADVICE


def test_other_scores_are_not_written_under_the_same_version(tmp_path, monkeypatch):
    file = tmp_path / "golden_scores.json"
    monkeypatch.setattr(golden_scores, "FILE", file)
    assert golden_scores.main() is None
    document = json.loads(file.read_text(encoding="utf-8"))
    document["scores"]["numeric"][0][1]["accuracy"] = 0.5
    file.write_text(json.dumps(document), encoding="utf-8")
    assert "raise SCORING_VERSION" in golden_scores.main()
    monkeypatch.setattr(golden_scores, "SCORING_VERSION", SCORING_VERSION + 1)
    assert golden_scores.main() is None
