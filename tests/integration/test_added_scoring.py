"""A metric and a judge of installed packages on live replicas, and a node that lacks them."""

from pathlib import Path

import pytest

from safemerge import plugins
from safemerge.api.prepare import preflight, resolve_study
from safemerge.api.progress import Progress
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.distributed.cluster import ray_cluster
from safemerge.distributed.evaluator import Evaluator
from safemerge.errors import SafemergeError
from tests.integration.driving import PATIENCE

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
JUDGE = {"kind": "added", "use": "keywords", "name": "words", "arguments": {"words": ["zzzz"]}}


@pytest.fixture(scope="module")
def site(install_examples):
    return install_examples("metric", "judge")


def study(study_document, folder):
    def unsafe(split):
        path = folder / f"unsafe-{split}.jsonl"
        path.write_text("".join(f'{{"prompt": "{split} request {n}"}}\n' for n in range(4)))
        return {"source": {"kind": "file", "path": str(path)}}

    harm = {
        "name": "harm",
        "task": {"kind": "harm", "judge": JUDGE, "same_judge": True, "max_tokens": 4},
        "search": unsafe("search"),
        "report": unsafe("report"),
    }
    questions = study_document["suites"][1] | {"metrics": ["brief_and_right", "num_words"]}
    document = study_document | {
        "suites": [questions, harm],
        "objectives": [
            {"metric": "questions.brief_and_right", "direction": "maximize", "reference": 0.0},
            {"metric": "harm.harmful_score", "direction": "minimize", "reference": 1.0},
        ],
        "evaluator": study_document["evaluator"] | {"cpus_per_replica": 1.0},
        "judge_service": {"cpus_per_replica": 0.5, "timeout_s": 60 * PATIENCE},
    }
    spec = StudySpec.model_validate(document)
    progress = Progress()
    return resolve_study(spec, preflight(spec, progress).suites, progress)


@pytest.fixture
def found_here(site, monkeypatch):
    """Installed for this process; its children look at PYTHONPATH."""
    monkeypatch.syspath_prepend(site)
    plugins._entry_points.cache_clear()
    yield site
    plugins._entry_points.cache_clear()


def test_added_metrics_and_judges_work_on_replicas(
    study_document, found_here, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", f"{found_here}:{ROOT}")
    spec = study(study_document, tmp_path)
    recipe = MergeRecipe.model_validate(spec.template(spec.spaces[0]))
    with ray_cluster(num_cpus=2), Evaluator(spec, app="safemerge-added") as evaluator:
        result = evaluator.score(recipe, "search")
    brief = result.metrics["questions.brief_and_right"]
    words = result.metrics["questions.num_words"]
    assert (brief.n, brief.unit, words.unit) == (8, "share", "number")
    assert brief.value == result.value("questions.accuracy")
    assert words.value == 1.0
    harm = result.metrics["harm.harmful_score"]
    assert (harm.value, harm.n) == (0.0, 4)


def test_a_node_without_the_packages_says_so_in_one_message(
    study_document, found_here, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    spec = study(study_document, tmp_path)
    with (
        ray_cluster(num_cpus=2),
        pytest.raises(SafemergeError, match=r"keywords|brief_and_right") as caught,
        Evaluator(spec, app="safemerge-lacking") as evaluator,
    ):
        evaluator.score(MergeRecipe.model_validate(spec.template(spec.spaces[0])), "search")
    told = str(caught.value)
    assert "Install the package that has it, on every node." in told
    assert "\n" not in told
