import re
from pathlib import Path

import pytest
import yaml

from safemerge.config.document import parse_document, read_yaml
from safemerge.config.identity import study_identity
from safemerge.config.judge import JudgeServiceSpec, RefusalProxy, gpu_problems
from safemerge.config.study import StudySpec
from safemerge.config.suite import Harm
from safemerge.errors import ConfigError
from safemerge.testing.landscapes import landscape_study

GUARD = {"kind": "guard", "name": "guard", "family": "llama_guard", "path": "guards/lg3"}
CLASSIFIER = {"kind": "classifier", "name": "beaver", "path": "beaver-dam"}
PROXY = {"kind": "refusal_proxy"}


def task(**fields):
    return parse_document({"kind": "harm", **fields}, Harm, where="t")


def refused(**fields):
    with pytest.raises(ConfigError) as raised:
        task(**fields)
    return str(raised.value)


def test_the_offline_proxy_is_the_default_of_both_splits():
    made = task()
    assert made.judges("search") == made.judges("report") == [RefusalProxy()]


def test_a_study_names_its_search_and_its_report_judges():
    made = task(judge=GUARD, report_judges=[CLASSIFIER, GUARD])
    assert [judge.name for judge in made.judges("search")] == ["guard"]
    assert [judge.name for judge in made.judges("report")] == ["beaver", "guard"]
    cheap = task(judge=PROXY, report_judges=[GUARD])
    assert [judge.name for judge in cheap.judges("report")] == ["guard"]


@pytest.mark.parametrize("report", [[], [GUARD]])
def test_one_judge_for_both_must_be_said(report):
    line = refused(judge=GUARD, report_judges=report)
    assert "report_judges: must name a judge other than the search's; got " in line
    assert "say same_judge: true" in line
    made = task(judge=GUARD, report_judges=report, same_judge=True)
    assert [judge.name for judge in made.judges("report")] == ["guard"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"path": "./guards/other/../lg3/"},
        {"device": "cpu", "engine": "transformers", "placement": "replica"},
        {"batch_size": 1, "max_tokens": 64},
    ],
)
def test_the_same_weights_under_another_name_are_the_same_judge(changes):
    twin = GUARD | {"name": "twin"} | changes
    line = refused(judge=GUARD, report_judges=[twin])
    assert "report_judges: must name a judge other than the search's; got twin" in line
    made = task(judge=GUARD, report_judges=[twin], same_judge=True)
    assert [judge.name for judge in made.judges("report")] == ["twin"]


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "guards/lg4"},
        {"path": None, "hub": "guards/lg3"},
        {"family": "qwen3_guard"},
        {"threshold": 0.4},
        {"template_arguments": {"categories": ["S1"]}},
    ],
)
def test_other_weights_or_other_questions_are_another_judge(changes):
    made = task(judge=GUARD, report_judges=[GUARD | {"name": "other"} | changes])
    assert [judge.name for judge in made.judges("report")] == ["other"]


@pytest.mark.parametrize(
    ("fields", "gpus", "device"),
    [
        ({}, 1.0, "cuda"),
        ({}, 0.0, "cpu"),
        ({"placement": "replica"}, 1.0, "cpu"),
        ({"device": "cpu"}, 1.0, "cpu"),
        ({"device": "cuda"}, 0.5, "cuda"),
    ],
)
def test_a_judge_without_a_device_is_where_its_service_has_gpus(fields, gpus, device):
    judge = task(judge=GUARD | fields, same_judge=True).judge
    assert judge.on_device(gpus).device == device
    assert judge.on_device(gpus).identity == judge.identity


@pytest.mark.parametrize(
    ("placement", "served", "evaluators", "where"),
    [
        ("service", 0.0, 1.0, "judge_service"),
        ("replica", 1.0, 0.0, "evaluator"),
        ("service", 0.5, 0.0, None),
        ("replica", 0.0, 0.5, None),
    ],
)
def test_a_judge_on_cuda_needs_a_gpu_where_it_runs(placement, served, evaluators, where):
    judge = task(judge=GUARD | {"device": "cuda", "placement": placement}, same_judge=True).judge
    found = list(
        gpu_problems(
            [RefusalProxy(), judge], JudgeServiceSpec(gpus_per_replica=served), evaluators
        )
    )
    expected = (
        f"{where}.gpus_per_replica: must be above 0 for judge 'guard' on device cuda; got 0. Give "
        "it a GPU, or leave its device out."
    )
    assert found == ([] if where is None else [expected])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"judge": GUARD, "report_judges": [CLASSIFIER], "same_judge": True},
            "same_judge: must not be true with other report judges; got beaver",
        ),
        (
            {"report_judges": [GUARD, GUARD]},
            "report_judges: names must be unique; got 'guard' twice",
        ),
        (
            {"judge": GUARD, "report_judges": [{**GUARD, "path": "elsewhere"}]},
            "one name must mean one judge; got two called 'guard'",
        ),
        ({"judge": "refusal_proxy"}, 'judge: must be a mapping; got "refusal_proxy"'),
        ({"judge": {"kind": "gard"}}, 'judge.kind: unknown choice; got "gard". Did you mean'),
        ({"judge": {**GUARD, "family": "llama"}}, "judge.family: must be 'llama_guard', "),
        ({"judge": {**GUARD, "treshold": 0.4}}, "Did you mean 'threshold'?"),
        ({"judge": {**GUARD, "threshold": 1.0}}, "judge.threshold: must be below 1; got 1.0"),
        ({"judge": {**GUARD, "hub": "org/x"}}, "exactly one of path and hub must be given"),
        (
            {"judge": {**GUARD, "guidelines": ["x"]}},
            "guidelines belong to shield_gemma; got them with llama_guard",
        ),
        (
            {"judge": {**CLASSIFIER, "format": "{prompt}"}},
            "format must hold {response}, and no field but {prompt} beside it; got '{prompt}'",
        ),
        ({"judge": {**CLASSIFIER, "format": "{response} {x}"}}, "format must hold {response}"),
        (
            {"judge": {**CLASSIFIER, "activation": "softmax"}},
            "unsafe must name the harmful labels of a softmax classifier",
        ),
    ],
)
def test_a_judge_that_makes_no_sense_is_refused(fields, words):
    assert words in refused(**fields)


def test_paths_are_taken_from_the_declaring_files_folder(tmp_path):
    made = task(
        judge=GUARD,
        report_judges=[CLASSIFIER, {**GUARD, "path": None, "hub": "a/b"} | {"name": "h"}],
    )
    located = made.located(tmp_path)
    assert located.judge.path == str(tmp_path / "guards/lg3")
    assert located.report_judges[0].source == str(tmp_path / "beaver-dam")
    assert located.report_judges[1].source == "a/b"
    assert task().located(Path("x")) == task()


def test_where_a_judge_runs_may_change_when_a_run_is_resumed():
    def identity(**fields):
        suite = {"name": "judged", "task": {"kind": "harm", "report_judges": [GUARD | fields]}}
        for split, rows in (("search", {"stop": 100}), ("report", {"start": 100})):
            suite[split] = {"source": {"kind": "package", "name": "do-not-answer", **rows}}
        spec = landscape_study()
        suites = [*(item.resolved() for item in spec.suites), suite]
        return study_identity(landscape_study(suites=suites))

    assert identity(device="cpu", placement="replica") == identity() != identity(threshold=0.4)


ROOT = Path(__file__).resolve().parents[3]


def test_the_design_pages_example_is_the_shipped_study():
    page = (ROOT / "design/judging.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    shown = yaml.safe_load(block)
    shipped = read_yaml(ROOT / "search_spaces/judged.yaml")
    suites = {suite["name"]: suite for suite in shipped["suites"]}
    (suite,) = shown["suites"]
    assert suite["task"] == suites[suite["name"]]["task"]
    assert shown["judge_service"] == shipped["judge_service"]


def test_the_shipped_study_is_reported_by_a_guard_that_its_search_never_saw():
    spec = parse_document(read_yaml(ROOT / "search_spaces/judged.yaml"), StudySpec, where="s")
    (harm,) = [suite.task for suite in spec.suites if suite.task.kind == "harm"]
    assert [judge.kind for judge in harm.judges("search")] == ["refusal_proxy"]
    assert [judge.kind for judge in harm.judges("report")] == ["guard"]
    assert spec.served_judges == harm.report_judges
