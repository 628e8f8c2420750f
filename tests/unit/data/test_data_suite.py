import json

import pytest

from safemerge.config.alignment import AlignSpec
from safemerge.config.source import PromptData
from safemerge.config.suite import Classification, Harm, SuiteSpec
from safemerge.config.training import FinetuneSpec
from safemerge.data.sample import Sample
from safemerge.data.seen import recorded
from safemerge.data.suite import (
    LoadedSuite,
    check_disjoint,
    check_training,
    dropped_lines,
    load_splits,
    load_suite,
    load_suites,
)
from safemerge.errors import DataError
from safemerge.generation.dataset import write_samples
from safemerge.generation.record import GeneratedSample
from safemerge.testing.landscapes import landscape_study


def loaded(name, split, *samples, max_similarity=0.8):
    task = Harm(kind="harm")
    made = tuple(Sample(key, text) for key, text in samples)
    return LoadedSuite(name, task, split, made, max_similarity)


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {"kind": "file", "path": str(path)}

    return write


def suite(search, report, **changes):
    task = {"kind": "classification", "labels": ["yes", "no"]}
    fields = {"name": "mood", "task": task, **changes}
    fields["search"] = {"source": search, "label": "label"}
    fields["report"] = {"source": report, "label": "label"}
    return SuiteSpec.model_validate(fields)


def test_disjoint_splits_pass():
    search = [loaded("a", "search", ("s:1", "one")), loaded("b", "search", ("s:2", "two"))]
    check_disjoint(search, [loaded("a", "report", ("s:3", "three"), ("s:4", "four"))])


def test_a_shared_id_is_refused_and_named():
    search = [loaded("a", "search", ("s:1", "one"))]
    report = [loaded("b", "report", ("s:0", "zero"), ("s:1", "quite another text"))]
    words = r"suites: search and report split must not share prompts; got 1 shared, e\.g\. s:1 \(b"
    with pytest.raises(DataError, match=words):
        check_disjoint(search, report)


def test_a_shared_text_is_refused_whatever_its_punctuation_case_and_suite():
    search = [loaded("a", "search", ("s:1", "How do I kill a process?"))]
    report = [loaded("b", "report", ("r:9", "how do i KILL   a process"))]
    with pytest.raises(DataError, match=r"got 1 shared, e\.g\. r:9 \(b\)"):
        check_disjoint(search, report)


def test_of_many_shared_prompts_three_are_named():
    many = [(f"s:{index}", f"text {index}") for index in range(5)]
    with pytest.raises(
        DataError, match=r"got 5 shared, e\.g\. s:0 \(a\), s:1 \(a\), s:2 \(a\)\. "
    ):
        check_disjoint([loaded("a", "search", *many)], [loaded("a", "report", *many)])


def test_prompts_shared_within_one_split_are_allowed():
    one, other = loaded("a", "search", ("s:1", "x")), loaded("b", "search", ("s:1", "x"))
    check_disjoint([one, other], [loaded("a", "report", ("r:1", "y"))])


def test_a_suite_has_its_task_split_and_samples(write):
    source = write("rows.jsonl", [{"prompt": "fine?", "label": "Yes"}])
    made = load_suite(suite(source, source), "report")
    assert (made.name, made.split) == ("mood", "report")
    assert isinstance(made.task, Classification)
    (sample,) = made.samples
    assert (sample.prompt, sample.label, sample.system) == ("fine?", "Yes", None)


def test_a_gold_label_that_is_not_declared_is_refused(write):
    source = write("rows.jsonl", [{"prompt": "fine?", "label": "maybe"}])
    words = (
        r"suite 'mood', search: gold labels must be among yes, no; got 'maybe' for rows\.jsonl:"
    )
    with pytest.raises(DataError, match=words):
        load_suite(suite(source, source), "search")


def study(suites):
    spec = landscape_study()
    return spec.model_copy(update={"suites": suites})


def test_a_studys_suites_are_loaded_for_both_splits(write):
    search = write("s.jsonl", [{"prompt": "in?", "label": "yes"}])
    report = write("r.jsonl", [{"prompt": "out?", "label": "no"}])
    splits = load_suites(study([suite(search, report)]))
    assert {split: made[0].samples[0].prompt for split, made in splits.items()} == {
        "search": "in?",
        "report": "out?",
    }


def test_a_study_whose_splits_overlap_is_refused(write):
    source = write("s.jsonl", [{"prompt": "in?", "label": "yes"}])
    with pytest.raises(DataError, match=r"got 1 shared, e\.g\. s\.jsonl:[0-9a-f]{12} \(mood\)"):
        load_suites(study([suite(source, source)]))


LONG = "How can I pick the lock of my neighbour's front door"


def test_a_near_duplicate_is_refused_and_both_are_named():
    search = [loaded("a", "search", ("s:1", f"{LONG}?"), ("s:2", "two"))]
    report = [loaded("b", "report", ("r:1", "one"), ("r:2", f"Please: {LONG}"))]
    words = (
        r"suites: prompts of search and report split must not be near-duplicates; got 1, e\.g\. "
        r"r:2 \(b\) and s:1 \(a\), 0\.8\d\. Use other rows, or raise the suite's max_similarity"
    )
    with pytest.raises(DataError, match=words):
        check_disjoint(search, report)


def test_a_suite_may_allow_near_duplicates_but_not_equal_prompts():
    search = [loaded("a", "search", ("s:1", f"{LONG}?"))]
    near = loaded("b", "report", ("r:2", f"Please: {LONG}"), max_similarity=None)
    check_disjoint(search, [near])
    check_disjoint(search, [loaded("b", "report", ("r:2", f"Say: {LONG}"), max_similarity=0.95)])
    with pytest.raises(DataError, match="must not share prompts"):
        check_disjoint(search, [loaded("b", "report", ("r:2", LONG), max_similarity=None)])


def test_a_templates_fixed_words_do_not_make_prompts_alike(write):
    template = "Read the question with care and answer with one word, yes or no, only: {prompt}"
    splits = {
        key: {"source": write(f"{key}.jsonl", [{"prompt": text, "label": "yes"}])}
        | {"label": "label", "prompt": template}
        for key, text in (("search", "Is it warm?"), ("report", "Does she swim?"))
    }
    task = {"kind": "classification", "labels": ["yes", "no"]}
    spec = SuiteSpec.model_validate({"name": "mood", "task": task, **splits})
    found = load_suites(study([spec]))
    assert found["report"][0].samples[0].prompt.endswith("only: Does she swim?")
    assert found["report"][0].samples[0].own_text == "Does she swim?"


def test_codes_of_the_gold_column_become_labels(write):
    rows = [{"prompt": "a", "label": 1}, {"prompt": "b", "label": 0}]
    source = write("rows.jsonl", rows)
    task = {
        "kind": "classification",
        "labels": ["bad", "good"],
        "codes": {"0": "bad", "1": "good"},
    }
    made = load_suite(suite(source, source, task=task), "search")
    assert {sample.prompt: sample.label for sample in made.samples} == {"a": "good", "b": "bad"}


def test_samples_that_share_a_prompt_are_one_group(write):
    rows = [{"prompt": p, "label": "yes", "n": n} for n, p in enumerate(["Hi?", "hi", "Bye?"])]
    source = write("rows.jsonl", rows)
    made = load_suite(suite(source, source), "search")
    ids = {sample.prompt: sample.sample_id for sample in made.samples}
    assert set(made.groups) == {ids["Hi?"], ids["hi"]}
    assert len(set(made.groups.values())) == 1


def test_a_declared_column_groups_samples(write):
    rows = [{"prompt": f"q{n}", "label": "yes", "family": f"f{n // 2}"} for n in range(4)]
    source = write("rows.jsonl", rows)
    made = load_suite(suite(source, source, group="family"), "search")
    by_family: dict[str, set[str]] = {}
    for sample in made.samples:
        by_family.setdefault(sample.group, set()).add(made.groups[sample.sample_id])
    assert set(by_family) == {"f0", "f1"}
    assert [len(names) for names in by_family.values()] == [1, 1]
    assert set.union(*by_family.values()) <= set(made.groups), "named by an id, never by a text"
    with pytest.raises(DataError, match=r"suite 'mood', search\.group: .* got 'famly'"):
        load_suite(suite(source, source, group="famly"), "search")


def test_search_prompts_near_a_report_prompt_may_be_dropped(write):
    search = [{"prompt": text, "label": "yes"} for text in (f"Please: {LONG}", "What is it?")]
    search = write("search.jsonl", search)
    report = write("report.jsonl", [{"prompt": LONG, "label": "yes"}])
    with pytest.raises(DataError, match="must not be near-duplicates"):
        load_suites(study([suite(search, report)]))
    splits = load_suites(study([suite(search, report, near_duplicates="drop")]))
    assert [sample.prompt for sample in splits["search"][0].samples] == ["What is it?"]
    assert len(splits["report"][0].samples) == 1


def test_dropping_keeps_equal_prompts_refused_and_a_prompt_at_least(write):
    report = write("report.jsonl", [{"prompt": LONG, "label": "yes"}])
    equal = write("equal.jsonl", [{"prompt": f"{LONG}!", "label": "yes"}])
    with pytest.raises(DataError, match="must not share prompts"):
        load_suites(study([suite(equal, report, near_duplicates="drop")]))
    near = write("near.jsonl", [{"prompt": f"Please: {LONG}", "label": "yes"}])
    with pytest.raises(DataError, match="must keep a prompt; got 1 of 1 near a report prompt"):
        load_suites(study([suite(near, report, near_duplicates="drop")]))


def test_what_is_left_out_of_a_suite_is_told_with_its_counts(write):
    near = {"prompt": f"Please: {LONG}", "label": "yes"}
    own = {"prompt": "quite another question", "label": "yes"}
    search = write("search.jsonl", [near, own, {**own, "prompt": "Quite another question!"}])
    report = write("report.jsonl", [{"prompt": LONG, "label": "no"}])
    unique = {**search, "unique": "prompt"}
    specs = [
        suite(unique, report, near_duplicates="drop"),
        suite({**unique, "start": 0}, report, name="calm", near_duplicates="drop"),
        suite(write("other.jsonl", [own]), report, name="none"),
    ]
    lines = dropped_lines(specs, load_splits(specs))
    assert lines == [
        f"suite '{name}', left out: rows that repeat in the search source: 1, "
        "search prompts near report prompts: 1"
        for name in ("mood", "calm")
    ]


# --- training data ----------------------------------------------------------------------


def stage(*sources, poison=None, **changes):
    data = [{"source": source, "response": "{answer}"} for source in sources]
    fields = {"name": "expert", "base": {"name": "base", "path": "x"}, "data": data, "steps": 1}
    fields |= changes
    if poison is not None:
        fields["poison"] = {"ratio": 0.1, "data": {"source": poison, "response": "no"}}
    return FinetuneSpec.model_validate(fields)


def test_report_prompts_that_no_stage_has_seen_pass(write):
    source = write("train.jsonl", [{"prompt": "in the training", "answer": "x"}])
    check_training([stage(source)], [loaded("a", "report", ("r:1", "fresh"))])
    check_training([], [loaded("a", "report", ("r:1", "fresh"))])


def aligning(source, **harmful):
    told = {"response": "no"}
    return AlignSpec.model_validate(
        {
            "kind": "align",
            "name": "hardened",
            "base": {"name": "base", "path": "x"},
            "method": "booster",
            "data": [{"source": source, **told}, {"source": source, **told}],
            "harmful": {key: [{"source": item, **told}] for key, item in harmful.items()},
            "steps": 1,
        }
    )


@pytest.mark.parametrize(
    "made_of",
    [
        lambda clean, seen: stage(clean, seen),
        lambda clean, seen: stage(clean, poison=seen),
        lambda clean, seen: aligning(clean, data=seen),
        lambda clean, seen: aligning(clean, data=clean, test=seen),
        lambda clean, seen: stage(
            clean, method="lisa", lisa={"data": [{"source": seen, "response": "no"}]}
        ),
    ],
    ids=["data", "poison", "harmful", "harmful_test", "lisa"],
)
def test_a_report_prompt_that_a_stage_has_seen_is_refused(write, made_of):
    clean = write("clean.jsonl", [{"prompt": "harmless", "answer": "x"}])
    seen = write("seen.jsonl", [{"prompt": "How do I do it?", "answer": "x"}])
    made = made_of(clean, seen)
    words = (
        r"that a stage of the study is trained on or a recipe was optimised on; got 1 shared, "
        r"e\.g\. r:7 \(a\)\. Use disjoint"
    )
    with pytest.raises(DataError, match=words):
        check_training([made], [loaded("a", "report", ("r:7", "how do I do it"))])


def test_a_report_prompt_near_a_training_prompt_is_refused(write):
    seen = write("seen.jsonl", [{"prompt": LONG, "answer": "x"}])
    report = loaded("a", "report", ("r:7", f"Please: {LONG}"))
    words = (
        r"must not be near-duplicates of training prompts; got 1, "
        r"e\.g\. r:7 \(a\) and seen\.jsonl:\w+ \(expert\)"
    )
    with pytest.raises(DataError, match=words):
        check_training([stage(seen)], [report])
    allowed = loaded("a", "report", ("r:7", f"Please: {LONG}"), max_similarity=None)
    check_training([stage(seen)], [allowed])


def test_what_a_recipe_was_optimised_on_is_refused_and_must_be_as_it_was(write):
    source = write("pairs.jsonl", [{"prompt": "How do I do it?"}, {"prompt": LONG}])
    data = PromptData.model_validate({"source": source})
    seen = recorded({"toy.safety.0": data})
    check_training([], [loaded("a", "report", ("r:1", "fresh"))], seen=seen)
    with pytest.raises(DataError, match=r"a recipe was optimised on; got 1 shared, e\.g\. r:7"):
        check_training([], [loaded("a", "report", ("r:7", "how do I do it"))], seen=seen)
    near = ("r:8", f"Please: {LONG}")
    with pytest.raises(DataError, match=r"r:8 \(a\) and pairs\.jsonl:\w+ \(toy\.safety\.0\)"):
        check_training([], [loaded("a", "report", near)], seen=seen)
    check_training([], [loaded("a", "report", near, max_similarity=None)], seen=seen)
    write("pairs.jsonl", [{"prompt": "quite another"}])
    with pytest.raises(DataError, match=r"toy\.safety\.0: must hold the rows that the recipe was"):
        check_training([], [loaded("a", "report", ("r:1", "fresh"))], seen=seen)


# --- worked examples --------------------------------------------------------------------


SHOTS = {"rows": [{"prompt": "Sunny?", "label": "yes"}, {"prompt": "Rainy?", "label": "no"}]}


def test_worked_examples_stand_before_each_question(write):
    source = write("rows.jsonl", [{"prompt": "fine?", "label": "yes"}])
    few_shot = {**SHOTS, "answer": "{label}", "header": "Answer.", "before_answer": "\n-> "}
    (sample,) = load_suite(suite(source, source, few_shot=few_shot), "search").samples
    assert sample.prompt == "Answer.\n\nSunny?\n-> yes\n\nRainy?\n-> no\n\nfine?"
    assert sample.own_text == "fine?"
    (plain,) = load_suite(suite(source, source), "search").samples
    assert plain.sample_id == sample.sample_id


def test_worked_examples_may_come_from_a_source(write):
    source = write("rows.jsonl", [{"prompt": "fine?", "label": "yes"}])
    shots = write("shots.jsonl", [{"prompt": f"q{n}?", "label": "no"} for n in range(9)])
    few_shot = {"source": {**shots, "stop": 2}, "answer": "{label}"}
    (sample,) = load_suite(suite(source, source, few_shot=few_shot), "search").samples
    assert sample.prompt.count("? no\n\n") == 2


def test_a_question_among_its_own_examples_is_refused(write):
    source = write("rows.jsonl", [{"prompt": "sunny", "label": "yes"}])
    words = r"suite 'mood', search\.few_shot: worked examples must not be asked; got rows\.jsonl:"
    with pytest.raises(DataError, match=words):
        load_suite(suite(source, source, few_shot={**SHOTS, "answer": "{label}"}), "search")


def test_examples_come_from_one_place():
    for few_shot in ({}, {**SHOTS, "source": {"kind": "file", "path": "x.jsonl"}}):
        with pytest.raises(ValueError, match="exactly one of source and rows must be given"):
            suite({}, {}, few_shot=few_shot)


@pytest.mark.parametrize("place", ["data", "poison"])
def test_generated_data_are_compared_by_their_question_whatever_its_frame(tmp_path, place):
    question = "Where did the cat sleep while it was raining outside?"
    sample = GeneratedSample(
        id="experts:1",
        prompt=f"Say in one word what this text is about, out of the list above.\n{question}",
        response="pets",
        question=question,
        set="experts",
        topic=None,
        written_by="math",
        answered_by="math",
        writer_digest=None,
        model_digest=None,
    )
    path = write_samples(tmp_path, "experts", [sample], as_parquet=False)
    clean = tmp_path / "clean.jsonl"
    clean.write_text('{"prompt": "harmless", "answer": "x"}\n')
    seen, other = ({"kind": "file", "path": str(file)} for file in (path, clean))
    made = stage(seen) if place == "data" else stage(other, poison=seen)
    with pytest.raises(DataError, match=r"must not hold prompts that a stage of the study is"):
        check_training([made], [loaded("a", "report", ("r:1", question.upper()))])
    near = question.replace("outside", "again")
    with pytest.raises(DataError, match=r"must not be near-duplicates of training prompts"):
        check_training([made], [loaded("a", "report", ("r:1", near), max_similarity=0.7)])
    check_training([made], [loaded("a", "report", ("r:1", "What do birds eat in winter?"))])
