"""`safemerge attribute` over a run folder: planned, resumed, refused; on a live engine."""

import json

import pytest

import safemerge
from safemerge.api import attribute as attributing
from safemerge.api.attribute import plan_attribution, record_merges
from safemerge.cli import main
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec, StudySpec
from safemerge.data.suite import load_suites
from safemerge.engines.chat import ChatFormat
from safemerge.engines.transformers_engine import TransformersEngine
from safemerge.errors import EngineError, UserError
from safemerge.evaluation import evaluate_candidate, prepare_split
from safemerge.records import TrialRecord
from safemerge.store import RunStore
from safemerge.testing.pico import pico_base, pico_expert

METRIC = "pick.accuracy"


WORDS = ("apple", "stone", "river", "why", "seven", "blue ink", "a long walk", "no")
NUM_PROMPTS = 24


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    # NOTE: large weights, so that candidates prefer other words than each other.
    root = tmp_path_factory.mktemp("models")
    base = pico_base(root / "base", seed=5)
    experts = {
        name: pico_expert(base, root / name, seed=seed, scale=0.3)
        for seed, name in enumerate(("math", "safety"), start=6)
    }
    return {"base": base, **experts}


@pytest.fixture
def study(models, tmp_path):
    def questions(split):
        rows = [
            {"q": f"{split} {i}?", "a": WORDS[i % 8], "b": WORDS[(3 * i + 1) % 8], "label": "0"}
            for i in range(NUM_PROMPTS)
        ]
        file = tmp_path / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        source = {"kind": "file", "path": str(file)}
        return {"source": source, "prompt": "{q}", "label": "label"}

    experts = [{"name": n, "path": str(models[n])} for n in ("math", "safety")]
    return StudySpec.model_validate(
        {
            "name": "pico",
            "base": {"name": "base", "path": str(models["base"])},
            "experts": experts,
            "spaces": [
                {
                    "name": "ties",
                    "method": {"name": "ties", "weights": {"math": 0.5, "safety": 0.5}},
                    "vary": {"method.density": {"low": 0.1, "high": 1.0}},
                }
            ],
            "suites": [
                {
                    "name": "pick",
                    "task": {"kind": "choice", "endings": ["{a}", "{b}"]},
                    "max_similarity": None,
                    "search": questions("search"),
                    "report": questions("report"),
                }
            ],
            "objectives": [{"metric": METRIC, "direction": "maximize", "reference": 0.0}],
            "num_trials": 1,
        }
    )


@pytest.fixture
def score(study):
    """Score a recipe as a replica does, on the transformers engine in this process."""
    models = MergeRecipe(base=study.base, experts=study.experts, method=study.spaces[0].method)
    engine = TransformersEngine(
        models, EvaluatorSpec(engine="transformers", dtype="float32", max_model_len=256)
    )
    chat = ChatFormat(str(study.base.path), study.chat)
    prepared = prepare_split(load_suites(study)["search"], chat, max_model_len=256)
    yield lambda recipe: evaluate_candidate(
        engine, recipe, prepared, aggregates={}, max_unscored=1.0
    )
    engine.close()


@pytest.fixture
def run(study, score, tmp_path):
    """A run folder with one scored trial, a TIES merge of both experts."""
    recipe = MergeRecipe(base=study.base, experts=study.experts, method=study.spaces[0].method)
    store = RunStore(tmp_path / "pico").create(study)
    store.append(
        TrialRecord(
            number=0,
            role="sampled",
            label="trial 0",
            state="COMPLETE",
            recipe=recipe.resolved(),
            candidate=recipe.digest,
            objectives={METRIC: 0.5},
            feasible=True,
            result=score(recipe),
        )
    )
    return store.folder


@pytest.fixture
def engine_asked(score, monkeypatch):
    """In place of the cluster, the engine of this process; fails after `limit` merges."""
    asked = []

    def evaluate(spec, store, plan, lines):
        def results():
            for recipe in plan.missing:
                if len(asked) == evaluate.limit:
                    raise EngineError("evaluator: the engine failed")
                asked.append(recipe.digest)
                yield score(recipe)

        record_merges(store, plan.missing, results(), lines)

    evaluate.limit = None
    monkeypatch.setattr(attributing, "_evaluate", evaluate)
    return evaluate, asked


def test_a_dry_run_counts_the_merges_and_evaluates_none(run, capsys):
    assert main(["attribute", str(run), "--pick", "0", "--dry-run"]) == 0
    said = capsys.readouterr().out
    # Two parents, the base alone; density and election; two layers, the rest, two kinds.
    assert "would evaluate 10 merges on the search split; 0 of 10 are scored already" in said
    assert "without parent math: merge" in said
    assert "every set of parents, for Shapley values: 4 merges" in said
    assert not (run / "attribution.jsonl").exists()


def test_an_interrupted_attribution_continues_and_merges_once(run, engine_asked, tmp_path):
    evaluate, asked = engine_asked
    evaluate.limit = 3
    with pytest.raises(EngineError):
        safemerge.attribute(run, pick="0")
    assert len(asked) == 3
    assert len(plan_attribution(run, pick="0").missing) == 7
    evaluate.limit = None
    found = safemerge.attribute(safemerge.load_run(run), pick="0", progress=None)
    assert len(asked) == len(set(asked)) == 10
    assert found.num_merges == 10
    assert found.parents == ["math", "safety"]
    assert {item.kind for item in found.effects} == {"parent", "operator", "layers", "shapley"}
    assert safemerge.attribute(run, pick="0") == found
    assert len(asked) == 10
    assert json.loads((run / "attribution" / "0.json").read_text()) == found.resolved()


def test_effects_are_those_of_the_live_engine(run, engine_asked, score):
    found = safemerge.attribute(run, pick="0", looks=["parents"])
    whole = RunStore(run).trials()[0]
    recipe = MergeRecipe.model_validate(whole.recipe)
    method = {**recipe.resolved()["method"], "weights": {"math": 0.0, "safety": 0.5}}
    without = score(MergeRecipe.model_validate({**recipe.resolved(), "method": method}))
    (item,) = (item for item in found.effects if item.name == "math")
    assert item.value == pytest.approx(
        whole.result.value(METRIC) - without.value(METRIC), abs=1e-12
    )
    assert item.n == NUM_PROMPTS
    assert any(other.value for other in found.effects)


def test_the_command_prints_what_was_found_and_redraws_the_page(run, engine_asked, capsys):
    assert main(["attribute", str(run), "--pick", "0", "--only", "parents"]) == 0
    said = capsys.readouterr().out
    found = json.loads((run / "attribution" / "0.json").read_text())
    assert len(found["sentences"]) == 1
    assert found["sentences"][0] in said
    assert f"without parent math: {METRIC}" in said
    assert "parent left out: math" in (run / "report.html").read_text(encoding="utf-8")
    assert main(["attribute", str(run), "--pick", "0", "--only", "operators", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trial"] == 0


def test_a_broken_point_is_refused(run):
    (trial,) = RunStore(run).trials()
    result = trial.result.model_copy(update={"broken": "loops"})
    RunStore(run).append(
        trial.model_copy(update={"number": 1, "result": result, "reason": "loops"})
    )
    with pytest.raises(
        UserError, match="must have scores of each prompt and not be broken; got loops"
    ):
        safemerge.attribute(run, pick="1")


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        ("7", "no such trial; got 7"),
        ("knee", "holds no published front"),
    ],
)
def test_a_point_that_is_not_there_is_refused(run, pick, message):
    with pytest.raises(UserError, match=message):
        safemerge.attribute(run, pick=pick)


def test_what_cannot_be_looked_at_is_refused(run):
    with pytest.raises(UserError, match=r"looks must be of parents, .* got 'children'"):
        safemerge.attribute(run, pick="0", looks=["children"])
