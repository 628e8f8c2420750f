from pathlib import Path

import pytest
import yaml

from safemerge.config.document import load_document, parse_document
from safemerge.config.study import StudySpec
from safemerge.errors import ConfigError
from safemerge.testing.landscapes import landscape_study

SPLITS = {
    split: {
        "source": {"kind": "hub", "dataset": "org/set", "split": "train", "where": {"safe": True}},
        "prompt": "{question}",
        "label": "answer",
    }
    for split in ("search", "report")
}
FULL = landscape_study(
    experts=[
        {"name": "skill", "finetune": "skill.yaml"},
        {"name": "safety", "package": "smollm2-135m-instruct"},
    ],
    spaces=[
        {
            "name": "layers",
            "method": {
                "name": "ties",
                "weights": {"skill": 1.0, "safety": {"early": 0.2, "default": 0.8}},
                "density": {"skill": 0.5, "safety": 0.5},
            },
            "layer_groups": [{"name": "early", "layers": "0-9"}],
            "vary": {
                "method.weights.safety.early": {"low": 0.0, "high": 1.0, "step": 0.25},
                "method.density.skill": {"low": 0.01, "high": 1.0, "log": True},
                "dtype": {"choices": ["base", "float32"]},
                "method.lambda": {"choices": [0.5, 1, 1.5]},
            },
        }
    ],
    suites=[
        {"name": "task", "task": {"kind": "exact_match", "pattern": "#### (.+)"}, **SPLITS},
        {
            "name": "harm",
            "task": {"kind": "harm"},
            "search": {"source": {"kind": "package", "name": "do-not-answer", "stop": 100}},
            "report": {"source": {"kind": "package", "name": "do-not-answer", "start": 100}},
        },
        {
            "name": "benign",
            "task": {"kind": "over_refusal"},
            "search": {"source": {"kind": "file", "path": "edgy.jsonl", "stop": 50}},
            "report": {"source": {"kind": "file", "path": "edgy.jsonl", "start": 50}},
        },
    ],
    aggregates={"refusals": {"mean_of": ["benign.over_refusal_rate", "harm.complied_rate"]}},
    objectives=[
        {"metric": "task.accuracy", "direction": "maximize", "reference": 0.0},
        {"metric": "harm.harmful_score", "direction": "minimize", "reference": 1.0},
    ],
    constraints=[
        {"metric": "refusals", "budget": 0.5},
        {"metric": "task.accuracy", "budget": 0.1, "direction": "maximize"},
    ],
)
DOCUMENT = FULL.resolved()


def test_a_full_study_resolves_to_itself():
    assert parse_document(DOCUMENT, StudySpec, where="f") == FULL


def test_a_full_study_survives_yaml(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT, sort_keys=False))
    assert load_document(path, StudySpec) == FULL


def test_an_unknown_key_is_refused_at_every_level(places, set_in, problems):
    paths = list(places(FULL))
    assert {
        "",
        "base",
        "experts/1",
        "spaces/0/method",
        "spaces/0/layer_groups/0",
        "spaces/0/vary/method.density.skill",
        "spaces/0/vary/dtype",
        "suites/0/task",
        "suites/1/report/source",
        "aggregates/refusals",
        "constraints/0",
        "sampler",
        "evaluator",
    } <= set(paths)
    for path in paths:
        (line,) = problems(set_in(DOCUMENT, f"{path}/zzz".strip("/"), 1), StudySpec)
        assert "zzz: unknown key; got 1. Known: " in line


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (
            "suites/1/task/judg",
            "refusal_proxy",
            "suites.harm.task.judg: unknown key; got \"refusal_proxy\". Did you mean 'judge'?",
        ),
        (
            "suites/1/task/kind",
            "ham",
            "suites.harm.task.kind: unknown choice; got \"ham\". Did you mean 'harm'?",
        ),
        (
            "suites/1/task/report_judges",
            [{"kind": "classifier", "name": "dam", "path": "dam", "device": "cuda"}],
            "judge_service.gpus_per_replica: must be above 0 for judge 'dam' on device cuda; got "
            "0. Give it a GPU, or leave its device out.",
        ),
        (
            "suites/0/task/pattern",
            "#### (.+",
            "suites.task.task.pattern: must be a regular expression; got '#### (.+' "
            "(missing ), unterminated subpattern at position 5).",
        ),
        (
            "suites/0/task/pattern",
            "####",
            "suites.task.task.pattern: must have one group; got 0 in '####'.",
        ),
        (
            "suites/0/search/source/splitt",
            "x",
            "suites.task.search.source.splitt: unknown key; got \"x\". Did you mean 'split'?",
        ),
        (
            "suites/1/search/source/stop",
            0,
            "suites.harm.search.source.stop: must be above 0; got 0.",
        ),
        (
            "suites/1/report/source/stop",
            99,
            "suites.harm.report.source: stop must exceed start; got start=100, stop=99.",
        ),
        (
            "suites/0/report/label",
            None,
            "suites.task: report.label must name the gold column for a exact_match task.",
        ),
        (
            "spaces/0/method/density/skill",
            0,
            "spaces.layers.method.density.skill: must be above 0; got 0.",
        ),
        (
            "spaces/0/method/weights/safety",
            "x",
            'spaces.layers.method.weights.safety: must be a number; got "x".',
        ),
        (
            "spaces/0/method/weights/safety",
            {"earlie": 1.0, "default": 1.0},
            "spaces.layers: method.weights.safety: names an unknown layer group; got 'earlie'. "
            "Did you mean 'early'?",
        ),
        ("spaces/0/vary", {}, "spaces.layers.vary: must have at least 1 item; got {}."),
        ("spaces/0/vary/dtype", 3, "spaces.layers.vary.dtype: must be a mapping; got 3."),
        (
            "spaces/0/vary/dtype",
            {"choices": []},
            "spaces.layers.vary.dtype.choices: must have at least 1 item; got [].",
        ),
        (
            "spaces/0/vary/method.lambda",
            {"choices": [1, 1.0]},
            "spaces.layers.vary.method.lambda: choices must be distinct; got 1.0 twice.",
        ),
        (
            "spaces/0/vary/method.lambda",
            {"low": 2, "high": 1},
            "spaces.layers.vary.method.lambda: low must be below high; got low=2.0, high=1.0.",
        ),
        (
            "spaces/0/vary/method.lambda",
            {"low": 0, "high": 1, "log": True},
            "spaces.layers.vary.method.lambda: log needs low > 0; got low=0.0.",
        ),
        (
            "spaces/0/vary/method.lambda",
            {"low": 1, "high": 2, "log": True, "step": 0.1},
            "spaces.layers.vary.method.lambda: log and step exclude each other. Drop one.",
        ),
        (
            "spaces/0/vary/method.lambda",
            {"low": 1, "high": 2, "step": 1.5},
            "spaces.layers.vary.method.lambda: step must not exceed high - low; "
            "got step=1.5, low=1.0, high=2.0.",
        ),
        (
            "spaces/0/vary/method.lambda",
            {"low": 1},
            "spaces.layers.vary.method.lambda.high: required key is missing. Add it.",
        ),
        ("experts/0/finetune", None, "experts.skill: exactly one of"),
        (
            "experts/1/package",
            "smollm2-135m-instrukt",
            "experts.safety.package: must be 'smollm2-135m-instruct'; "
            "got \"smollm2-135m-instrukt\". Did you mean 'smollm2-135m-instruct'?",
        ),
        ("experts/1/name", "a.b", "experts.1.name: must match the pattern"),
        (
            "experts/1/name",
            "skill",
            "checkpoint names must be unique; got 'skill' more than once.",
        ),
        ("suites/1/name", "task", "suite names must be unique; got 'task' more than once."),
        (
            "objectives/0/metric",
            "task.accurracy",
            "objectives.0.metric: no such metric; got 'task.accurracy'. "
            "Did you mean 'task.accuracy'?",
        ),
        (
            "objectives/1/metric",
            "task.accuracy",
            "objectives' metrics must be unique; got 'task.accuracy' more than once.",
        ),
        (
            "objectives/0/direction",
            "maximise",
            "objectives.0.direction: must be 'maximize' or 'minimize'; got \"maximise\". "
            "Did you mean 'maximize'?",
        ),
        ("objectives", [], "objectives: must have at least 1 item; got []."),
        (
            "constraints/0/metric",
            "refusal",
            "constraints.0.metric: no such metric; got 'refusal'. Did you mean 'refusals'?",
        ),
        ("constraints/0/budget", float("inf"), "constraints.0.budget: must be finite; got Inf"),
        (
            "aggregates/refusals/mean_of/0",
            "refusals",
            "aggregates.refusals.mean_of: no such metric; got 'refusals'. Did you mean ",
        ),
        (
            "aggregates/harm.refusal_rate",
            {"mean_of": ["task.accuracy"]},
            "aggregates.harm.refusal_rate: the name is taken by a suite's metric.",
        ),
        ("evaluator/min_replicas", 2, "evaluator: min_replicas must not exceed max_replicas; got"),
        ("evaluator/max_unscored", 1.5, "evaluator.max_unscored: must be at most 1; got 1.5."),
        (
            "sampler/name",
            "tpee",
            "sampler.name: must be 'auto', 'tpe', 'bayesian', 'nsga2', 'nsga3', 'qmc' or "
            "'random'; got \"tpee\".",
        ),
        (
            "sampler/name",
            "qlognehvi",
            "sampler.name: is none of safemerge's own; got 'qlognehvi'. ",
        ),
        ("sampler/name", "gp", "sampler.name: is none of safemerge's own; got 'gp'. Write 'use: "),
        ("sampler/name", "map", "sampler.name: is none of safemerge's own; got 'map'. Take "),
        ("sampler/startup", 0, "sampler.startup: must be at least 1; got 0."),
        ("num_trials", 0, "num_trials: must be at least 1; got 0."),
        ("num_trials", 1e3, "num_trials: must be a whole number; got 1000.0."),
        ("seed", 2**32, "seed: must be below 4.29497e+09; got 4294967296."),
        ("storage", "redis", "storage: must be 'memory', 'sqlite' or 'journal'; got \"redis\"."),
    ],
)
def test_a_study_that_breaks_a_rule_is_told_with_place_and_value(
    path, value, line, set_in, problems
):
    found = problems(set_in(DOCUMENT, path, value), StudySpec)
    assert any(item.startswith(f"f.yaml: {line}") for item in found), found


@pytest.mark.parametrize(
    ("vary", "lines"),
    [
        (
            {"method.density.skill": {"low": 0.0, "high": 1.5}},
            [
                "illegal at 0.0: method.density.skill: must be above 0; got 0.0.",
                "illegal at 1.5: method.density.skill: must be at most 1; got 1.5.",
            ],
        ),
        (
            {"dtype": {"choices": ["base", "int8", "float32"]}},
            ["illegal at 'int8': dtype: must be 'base', 'float32', 'bfloat16' or 'float16'; got"],
        ),
        (
            {"method.lambda": {"choices": [1, "much"]}},
            ["illegal at 'much': method.lambda: must be a number; got \"much\"."],
        ),
        (
            {"method.densty.skill": {"low": 0.1, "high": 1.0}},
            [
                "no such path in the template; got 'method.densty.skill', wrong at 'densty'. "
                "Did you mean 'density'?"
            ],
        ),
        (
            {"experts.skil.path": {"choices": ["/a", "/b"]}},
            ["no such path in the template; got 'experts.skil.path', wrong at 'skil'. Did you"],
        ),
        (
            {"base.name": {"choices": ["skill"]}},
            [
                "illegal at 'skill': names of base and experts must be unique; got",
                "illegal at 'skill': method: names an unknown model; got 'skill'. Known: safety.",
            ],
        ),
    ],
)
def test_both_ends_of_every_range_are_made_into_a_recipe(vary, lines, set_in, problems):
    found = problems(set_in(DOCUMENT, "spaces/0/vary", vary), StudySpec)
    (path,) = vary
    starts = [f"f.yaml: spaces.layers.vary.{path}: {line}" for line in lines]
    assert len(found) == len(starts)
    for item, start in zip(found, starts, strict=True):
        assert item.startswith(start)


def test_problems_of_every_part_are_told_at_once(set_in, problems):
    document = set_in(DOCUMENT, "num_trials", 0)
    document = set_in(document, "suites/1/task/judg", "x")
    document = set_in(document, "evaluator/timeout_s", -1)
    document = set_in(document, "spaces/0/method/densty", 1)
    places = {line.split(": ")[1] for line in problems(document, StudySpec)}
    assert places == {
        "num_trials",
        "suites.harm.task.judg",
        "evaluator.timeout_s",
        "spaces.layers.method.densty",
    }


def test_rules_between_parts_are_told_at_once(set_in, problems):
    document = set_in(DOCUMENT, "objectives/0/metric", "nope")
    document = set_in(document, "constraints/0/metric", "neither")
    document = set_in(document, "spaces/0/vary", {"method.density.skill": {"low": 0, "high": 2}})
    assert len(problems(document, StudySpec)) == 4


def test_a_missing_part_is_told_by_its_key(problems):
    for key in ("name", "base", "experts", "spaces", "suites", "objectives", "num_trials"):
        document = {name: value for name, value in DOCUMENT.items() if name != key}
        assert problems(document, StudySpec) == [
            f"f.yaml: {key}: required key is missing. Add it."
        ]


def test_a_space_with_an_illegal_template_is_told(set_in, problems):
    document = set_in(DOCUMENT, "spaces/0/method/weights", {"skil": 1.0})
    found = problems(document, StudySpec)
    assert any(
        "spaces.layers: method: names an unknown model; got 'skil'" in line for line in found
    )


def test_a_range_read_from_yaml_is_the_kind_that_was_meant():
    vary = FULL.spaces[0].vary
    assert vary["method.density.skill"].ends() == (0.01, 1.0)
    assert vary["method.lambda"].ends() == (0.5, 1, 1.5)
    kinds = [type(value) for value in vary["method.lambda"].ends()]
    assert kinds == [float, int, float]


def test_relative_references_are_taken_from_the_files_folder():
    located = FULL.located(Path("/studies"))
    assert located.experts[0].finetune == "/studies/skill.yaml"
    assert located.suites[2].search.source.path == "/studies/edgy.jsonl"
    assert located.base.path == "/nowhere/base"


def test_checkpoints_are_replaced_by_name():
    by_name = {
        item.name: item.resolved_to(Path("/c"), fingerprint="f") for item in FULL.checkpoints
    }
    resolved = FULL.with_checkpoints(by_name)
    assert [item.name for item in resolved.checkpoints] == ["base", "skill", "safety"]
    assert {(item.path, item.digest, item.finetune) for item in resolved.checkpoints} == {
        ("/c", "f", None)
    }
    assert parse_document(resolved.resolved(), StudySpec, where="f") == resolved


def test_an_objective_without_a_range_needs_a_reference():
    task = {"kind": "lm_eval", "task": "arc", "metrics": {"perplexity": "minimize"}}
    source = {"source": {"kind": "lm_eval", "start": 0, "stop": 9}}
    suite = {"name": "arc", "task": task, "search": source, "report": source}
    document = DOCUMENT | {
        "suites": [*DOCUMENT["suites"], suite], "objectives": [{"metric": "arc.perplexity"}],
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"objectives\.0\.reference: required key is missing, "):
        parse_document(document, StudySpec, where="f")
