import copy
from pathlib import Path

import pytest

from safemerge.config.document import parse_document
from safemerge.config.judge import ClassifierJudge
from safemerge.errors import ConfigError
from safemerge.generation.spec import GenerateSpec, WriterSpec

SOURCE = {"kind": "file", "path": "rows.jsonl"}
DOCUMENT = {
    "kind": "generate",
    "name": "data",
    "models": [{"name": "aligned", "path": "a"}, {"name": "math", "path": "m"}],
    "safety": {"size": 4, "questions": {"kind": "data", "source": SOURCE}},
    "experts": {
        "size": 5,
        "sets": [
            {
                "model": name,
                "questions": {
                    "kind": "model",
                    "topics": ["sums"],
                    "examples": {"source": SOURCE},
                    "count": 3,
                },
            }
            for name in ("math", "aligned")
        ],
    },
}


def parse(change=lambda document: None):
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return parse_document(document, GenerateSpec, where="g.yaml")


def test_defaults_are_the_papers():
    spec = parse()
    assert spec.safety.max_tokens == spec.experts.max_tokens == 512
    assert spec.experts.sets[0].questions.num_examples == 3
    assert [spec.experts.share(index) for index in range(2)] == [3, 2]


def test_every_file_reference_is_taken_from_the_files_folder():
    def judged(document):
        document["safety"]["judge"] = {
            "kind": "classifier", "name": "j", "path": "judge", "unsafe": ["bad"],
        }  # fmt: skip

    spec = parse(judged).located(Path("/data"))
    assert spec.models[0].path == "/data/a"
    assert spec.safety.questions.source.path == "/data/rows.jsonl"
    assert isinstance(spec.safety.judge, ClassifierJudge)
    assert spec.safety.judge.path == "/data/judge"
    assert isinstance(spec.experts.sets[0].questions, WriterSpec)
    assert spec.experts.sets[0].questions.examples.source.path == "/data/rows.jsonl"
    assert GenerateSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


def expert(document, **changes):
    document["experts"]["sets"][0]["questions"].update(changes)


WRONG = {
    "twins": (
        lambda d: d["models"].append({"name": "math", "path": "b"}),
        r"models: names must be unique; got 'math' more than once",
    ),
    "nothing": (
        lambda d: (d.pop("safety"), d.pop("experts")),
        r"safety or experts must be given; got neither",
    ),
    "answerer": (
        lambda d: d["safety"].update(answered_by=["alinged"]),
        r"safety\.answered_by: must be a model of the pool; got 'alinged'\. "
        r"Did you mean 'aligned'",
    ),
    "writer": (
        lambda d: d["safety"].update(
            questions={"kind": "model", "prompt": "About {topic}", "count": 3}
        ),
        r"safety\.questions\.model must name the writer; got none",
    ),
    "expert": (
        lambda d: d["experts"]["sets"][0].update(model="maths"),
        r"experts\.sets\.0\.model: must be a model of the pool; got 'maths'",
    ),
    "same expert": (
        lambda d: d["experts"]["sets"][0].update(model="aligned"),
        r"experts\.sets: each expert once; got 'aligned' again",
    ),
    "domain": (
        lambda d: expert(d, topics=None),
        r"experts\.sets\.0\.questions\.topics must say the expert's domain; got none",
    ),
    "share": (
        lambda d: d["experts"].update(size=1),
        r"experts\.size must give each of 2 experts a sample; got 1",
    ),
    "room": (
        lambda d: d.update(evaluator={"max_model_len": 512}),
        r"safety\.max_tokens must leave room for a question in evaluator\.max_model_len, 512; "
        r"got 512",
    ),
    "field": (
        lambda d: expert(d, prompt="{examples} about {subject}"),
        r"may hold the fields \{topic\} and \{examples\}; got \{subject\}",
    ),
    "no examples": (
        lambda d: expert(d, examples=None),
        r"examples must be given for a prompt with \{examples\}; got none",
    ),
    "hidden examples": (
        lambda d: expert(d, prompt="About {topic}"),
        r"prompt must hold \{examples\}; got a prompt without it",
    ),
    "frame": (
        lambda d: d["experts"]["sets"][0].update(ask="Topic?"),
        r"experts\.sets\.0\.ask: .*must hold \{question\} once; got 'Topic\?'",
    ),
    "sampling": (lambda d: expert(d, temperature=0), r"temperature: must be above 0; got 0"),
    "unknown key": (
        lambda d: d["safety"].update(jugde={}),
        r"safety\.jugde: unknown key; got .*Did you mean 'judge'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_refused_with_its_place(name):
    change, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        parse(change)


def test_a_judge_on_cuda_without_a_gpu_is_refused():
    def judged(document):
        document["safety"]["judge"] = {
            "kind": "classifier", "name": "j", "path": "judge", "device": "cuda",
        }  # fmt: skip

    with pytest.raises(ConfigError, match=r"judge_service\.gpus_per_replica: must be above 0"):
        parse(judged)
