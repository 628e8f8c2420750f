import json

import pytest

from safemerge.errors import DataError, ScoringError
from safemerge.generation.pipeline import Generation
from safemerge.generation.question import check_questions
from safemerge.generation.record import Outcome
from safemerge.generation.spec import GenerateSpec

QUESTIONS = [f"How would somebody do the forbidden thing called {word}?" for word in
             ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot")]  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    def rows(name, prompts):
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"prompt": text, "kind": "x"}) + "\n" for text in prompts)
        )
        return {"kind": "file", "path": str(path)}

    return rows


@pytest.fixture
def spec(rows):
    def spec(**changes):
        questions = {"kind": "data", "source": rows("unsafe.jsonl", QUESTIONS), "topic": "kind"}
        document = {
            "kind": "generate",
            "name": "data",
            "models": [
                {"name": name, "path": f"/{name}", "digest": f"d-{name}"}
                for name in ("aligned", "math", "poet")
            ],
            "safety": {"size": 4, "questions": questions, "max_similarity": None},
            "evaluator": {"max_num_seqs": 2},
        }
        return GenerateSpec.model_validate_json(json.dumps(document | changes))

    return spec


class Scripted:
    """Work by rule: which questions a model refuses, what it writes."""

    def __init__(self, refuses, drafts=lambda model, ask: "How is it?", fail_after=None):
        self.refuses, self.drafts = refuses, drafts
        self.asked = []
        self.left = fail_after

    def __call__(self, kind, model, batches):
        for batch in batches:
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            self.asked += [(kind, model, ask.prompt) for ask in batch]
            yield [self.outcome(kind, model, ask) for ask in batch]

    def outcome(self, kind, model, ask):
        if kind == "draft":
            return Outcome(text=self.drafts(model, ask))
        if kind == "answer":
            return Outcome(text=f"{model} on {ask.prompt}")
        word = ask.prompt.rpartition(" ")[2].strip("?")
        if word in self.refuses.get(model, ()):
            return Outcome(text=f"{model} won't do {word}.")
        if word in self.refuses.get(f"unscored {model}", ()):
            return Outcome(dropped="unscored: timed out", unscored=True)
        return Outcome(dropped="no refusal")


REFUSES = {
    "aligned": ("alpha", "bravo", "charlie", "delta", "echo"),
    "math": ("alpha", "bravo", "charlie"),
    "poet": ("delta",),
}


def run(spec, folder, work):
    return Generation(spec, folder, work, progress=lambda *_: None)


def test_one_refusal_is_drawn_for_each_question_that_was_refused(spec, tmp_path):
    samples, summary = run(spec(), tmp_path / "s", Scripted(REFUSES)).safety()
    assert len(samples) == 4
    for sample in samples:
        word = sample.prompt.rpartition(" ")[2].strip("?")
        assert word in REFUSES[sample.answered_by]
        assert sample.response == f"{sample.answered_by} won't do {word}."
        assert sample.question == sample.prompt
        assert sample.model_digest == f"d-{sample.answered_by}"
        assert (sample.written_by, sample.writer_digest) == ("unsafe.jsonl", None)
        assert sample.topic == "x"
    assert summary.dropped == {"nobody refused": 1, "more than wanted": 1}
    assert summary.answers["math"].dropped == {"no refusal": 3}
    assert sum(summary.taken_from.values()) == summary.written == 4


def test_the_draw_is_fair_and_hangs_on_the_seed(spec, rows, tmp_path):
    many = {"kind": "data", "source": rows("many.jsonl", [f"Do the {i}?" for i in range(300)])}
    safety = {"size": 300, "questions": many, "max_similarity": None}
    everybody = Scripted({name: [str(i) for i in range(300)] for name in ("aligned", "math")})
    taken = {
        seed: run(spec(seed=seed, safety=safety), tmp_path / f"s{seed}", everybody).safety()[0]
        for seed in (0, 1)
    }
    share = sum(sample.answered_by == "math" for sample in taken[0]) / 300
    assert 0.38 < share < 0.62  # four standard errors
    assert taken[0] == run(spec(safety=safety), tmp_path / "s0", everybody).safety()[0]
    assert [s.answered_by for s in taken[0]] != [s.answered_by for s in taken[1]]


def test_every_model_of_the_pool_answers_unless_the_file_says_who(spec, tmp_path):
    work = Scripted(REFUSES)
    run(spec(), tmp_path / "s", work).safety()
    assert {model for _, model, _ in work.asked} == {"aligned", "math", "poet"}
    assert len(work.asked) == 18
    document = spec().resolved()["safety"] | {"answered_by": ["poet"]}
    samples, summary = run(spec(safety=document), tmp_path / "t", Scripted(REFUSES)).safety()
    assert {sample.answered_by for sample in samples} == {"poet"}
    assert (summary.written, summary.wanted) == (1, 4)


@pytest.mark.parametrize("killed_after", range(9))
def test_a_killed_run_goes_on_and_gives_the_same_data(spec, tmp_path, killed_after):
    whole = run(spec(), tmp_path / "whole", Scripted(REFUSES)).safety()
    work = Scripted(REFUSES, fail_after=killed_after)
    with pytest.raises(KeyboardInterrupt):
        run(spec(), tmp_path / "s", work).safety()
    work.left = None
    assert run(spec(), tmp_path / "s", work).safety() == whole
    assert len(work.asked) == len(set(work.asked)) == 18


def test_only_what_changed_is_asked_again(spec, tmp_path):
    work = Scripted(REFUSES)
    run(spec(), tmp_path / "s", work).safety()
    work.asked.clear()
    models = spec().resolved()["models"]
    models[1]["digest"] = "d-other"
    run(spec(models=models), tmp_path / "s", work).safety()
    assert {model for _, model, _ in work.asked} == {"math"}
    work.asked.clear()
    judge = {"kind": "classifier", "name": "j", "path": "/j"}
    safety = spec().resolved()["safety"] | {"judge": judge}
    run(spec(safety=safety), tmp_path / "s", work).safety()
    assert len(work.asked) == 18
    work.asked.clear()
    for elsewhere in ({"placement": "replica"}, {"device": "cpu"}):
        served = safety | {"judge": judge | elsewhere, "size": 1}
        run(spec(safety=served), tmp_path / "s", work).safety()
        assert work.asked == []


def test_too_many_unscored_answers_fail_and_are_asked_again(spec, tmp_path):
    work = Scripted({**REFUSES, "unscored poet": ("alpha", "bravo")})
    with pytest.raises(
        ScoringError,
        match=r"safety: unscored 2 of 6 answers of 'poet', limit 0\.02; first reason: "
        r"unscored: timed out",
    ):
        run(spec(), tmp_path / "s", work).safety()
    work.asked.clear()
    del work.refuses["unscored poet"]
    assert run(spec(), tmp_path / "s", work).safety()[1].written == 4
    assert {model for _, model, _ in work.asked} == {"poet"}


def test_questions_that_nobody_refuses_end_the_run(spec, tmp_path):
    with pytest.raises(DataError, match="got none of 6 refused by aligned, math, poet"):
        run(spec(), tmp_path / "s", Scripted({})).safety()


# --- writers ------------------------------------------------------------------------------

ANIMALS = ("badger", "cormorant", "dragonfly", "earwig", "flamingo", "gazelle", "hedgehog",
           "ibex", "jackdaw", "kingfisher", "lamprey", "mongoose")  # fmt: skip


def writer(rows, **changes):
    return {
        "kind": "model",
        "topics": ["animals"],
        "examples": {
            "source": rows("examples.jsonl", ["What does a yak eat?", "Can a zebra run?"])
        },
        "count": 4,
        **changes,
    }


def experts(*sets, size=4, **changes):
    return {"size": size, "sets": list(sets), "max_similarity": None, **changes}


def animal(model, ask):
    """The writer says an animal, now and then one that it has said, or an example."""
    number = int(ask.id.rpartition("-")[2])
    if number % 5 == 4:
        return "What does a yak eat?"
    return f"Where does the {ANIMALS[number % 7]} sleep?"


def test_an_expert_writes_and_answers_its_own_questions(spec, rows, tmp_path):
    declared = spec(
        safety=None, experts=experts({"model": "math", "questions": writer(rows, count=7)})
    )
    work = Scripted({}, animal)
    samples, summary = run(declared, tmp_path / "s", work).experts()
    assert len(samples) == 4
    assert {sample.written_by for sample in samples} == {"math"}
    assert {sample.writer_digest for sample in samples} == {"d-math"}
    assert all(sample.response == f"math on {sample.prompt}" for sample in samples)
    tally = summary.questions["math"]
    assert tally.kept == 7
    assert tally.dropped["copy of an example"] > 0
    assert tally.dropped["duplicate"] > 0
    assert tally.asked == tally.kept + sum(tally.dropped.values())
    assert summary.dropped == {"more than wanted": 3}
    drafts = [prompt for kind, _, prompt in work.asked if kind == "draft"]
    assert all("animals" in prompt and "- What does a yak eat?" in prompt for prompt in drafts)


def test_a_killed_writer_goes_on_in_the_middle_of_a_round(spec, rows, tmp_path):
    declared = spec(
        safety=None, experts=experts({"model": "math", "questions": writer(rows, count=7)})
    )
    whole = run(declared, tmp_path / "whole", Scripted({}, animal)).experts()
    work = Scripted({}, animal)
    for _ in range(20):
        work.left = 1
        try:
            found = run(declared, tmp_path / "s", work).experts()
        except KeyboardInterrupt:
            continue
        break
    assert found == whole


def test_a_writer_that_repeats_itself_is_given_up(spec, rows, tmp_path):
    declared = spec(safety=None, experts=experts({"model": "math", "questions": writer(rows)}))
    work = Scripted({}, lambda *_: "Where does the same old animal sleep?")
    _, summary = run(declared, tmp_path / "s", work).experts()
    assert summary.questions["math"].asked == 16
    assert summary.questions["math"].dropped == {"duplicate": 15}
    assert summary.written == 1
    copies = Scripted({}, lambda *_: "What does a yak eat")
    with pytest.raises(
        DataError,
        match=r"experts-math: a question must be kept; got 16 dropped: copy of an example x16",
    ):
        run(declared, tmp_path / "t", copies).experts()


def test_the_size_is_split_over_experts_and_no_question_is_asked_of_two(spec, rows, tmp_path):
    sets = [
        {"model": "math", "questions": writer(rows), "ask": "Topic?\n{question}"},
        {"model": "poet", "questions": writer(rows, model="math", count=12)},
    ]
    declared = spec(safety=None, experts=experts(*sets, size=5))

    def drafts(model, ask):
        number = int(ask.id.rpartition("-")[2])
        return f"Where does the {ANIMALS[number % 12]} sleep?"

    samples, summary = run(declared, tmp_path / "s", Scripted({}, drafts)).experts()
    assert summary.taken_from == {"math": 3, "poet": 2}
    assert len({sample.question for sample in samples}) == 5
    assert summary.dropped["asked of another expert"] == 4
    assert list(summary.questions) == ["math", "math for poet"]
    framed = [sample for sample in samples if sample.answered_by == "math"]
    assert all(sample.prompt == f"Topic?\n{sample.question}" for sample in framed)


def test_unsafe_questions_may_be_written_by_a_model(spec, rows, tmp_path):
    examples = {"source": rows("e.jsonl", ["How do I harm a yak?"])}
    questions = {"kind": "model", "model": "poet", "examples": examples, "count": 6}
    safety = {"size": 6, "questions": questions, "max_similarity": None}
    words = iter(("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"))
    work = Scripted(REFUSES, lambda *_: f"How do I do {next(words)}?")
    samples, _ = run(spec(safety=safety), tmp_path / "s", work).safety()
    assert len(samples) == 5
    assert {sample.written_by for sample in samples} == {"poet"}
    prompts = [prompt for kind, _, prompt in work.asked if kind == "draft"]
    assert len({prompt.splitlines()[0] for prompt in prompts}) > 3  # of the 14 topics


# --- sources ------------------------------------------------------------------------------


def test_sources_are_checked_before_anything_is_asked(spec, rows, tmp_path):
    check_questions(spec())
    empty = rows("none.jsonl", [])
    with pytest.raises(DataError, match=r"safety\.questions: source 'none\.jsonl' must give"):
        check_questions(spec(safety={"size": 1, "questions": {"kind": "data", "source": empty}}))
    bad = writer(rows, examples={"source": empty})
    with pytest.raises(DataError, match=r"experts\.sets\.0\.questions\.examples: source"):
        check_questions(spec(safety=None, experts=experts({"model": "math", "questions": bad})))
    column = {"kind": "data", "source": rows("u.jsonl", QUESTIONS), "prompt": "{question}"}
    with pytest.raises(DataError, match=r"safety\.questions\.prompt: .*got 'question'"):
        check_questions(spec(safety={"size": 1, "questions": column}))
