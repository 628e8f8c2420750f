import json

import pytest

from safemerge.config.alignment import AlignSpec
from safemerge.errors import DataError
from safemerge.robustness.attack_data import attack_content, check_attack_data, suite_content
from tests.unit.measuring import measurement


def source(folder, name, texts):
    path = folder / f"{name}.jsonl"
    rows = "".join(json.dumps({"prompt": text, "label": "positive"}) + "\n" for text in texts)
    path.write_text(rows, encoding="utf-8")
    return {"kind": "file", "path": str(path)}


@pytest.fixture
def texts():
    """Prompts of every set, none like another."""
    words = ["apple", "birch", "cloud", "drum", "eagle", "fern", "grape", "harp", "iris", "jade"]
    sets = ("search", "report", "mood_search", "mood_report", "benign", "poison", "curve", "align")
    return {
        name: [f"{name} {word} {word[::-1] * (2 + place)}" for word in words]
        for place, name in enumerate(sets)
    }


def build(folder, texts, **changes):
    def prompts(name):
        return {"source": source(folder, name, texts[name]), "label": "label"}

    def training(name):
        return {"source": source(folder, name, texts[name]), "response": "{label}"}

    spec = measurement(
        harm={
            "name": "harm",
            "task": {"kind": "harm"},
            "search": prompts("search"),
            "report": prompts("report"),
        },
        accuracy={
            "name": "mood",
            "task": {"kind": "classification", "labels": ["positive", "negative"]},
            "search": prompts("mood_search"),
            "report": prompts("mood_report"),
        },
        finetune={
            "data": [training("benign")],
            "poison": training("poison"),
            "curve": training("curve"),
        },
        **changes,
    )
    stage = AlignSpec.model_validate(
        {
            "name": "sft",
            "base": {"name": "base", "path": "/base"},
            "data": [training("align"), training("align")],
            "steps": 1,
        }
    )
    return spec, [stage]


def test_disjoint_data_give_the_suites_of_the_measured_split(tmp_path, texts):
    suites = check_attack_data(*build(tmp_path, texts))["report"]
    assert set(suites) == {"harm", "mood"}
    assert {sample.prompt for sample in suites["harm"].samples} == set(texts["report"])
    asked = check_attack_data(*build(tmp_path, texts, split="search"))["search"]
    assert {sample.prompt for sample in asked["harm"].samples} == set(texts["search"])


@pytest.mark.parametrize(
    ("taken", "into", "message"),
    [
        ("align", "poison", r"finetune\.poison: must share no prompt with sft\.data\.0"),
        ("poison", "curve", r"finetune\.curve: must share no prompt with finetune\.poison"),
        ("align", "curve", r"finetune\.curve: must share no prompt with sft\.data\.0"),
        ("poison", "report", "must not hold prompts that a stage of the study is trained on"),
        ("align", "report", "must not hold prompts that a stage of the study is trained on"),
        ("benign", "mood_report", "must not hold prompts that a stage of the study is trained"),
    ],
)
def test_rows_in_two_places_are_refused(taken, into, message, tmp_path, texts):
    texts[into][0] = texts[taken][0].upper()
    with pytest.raises(DataError, match=message):
        check_attack_data(*build(tmp_path, texts))


def test_a_poison_row_in_slightly_other_words_is_refused(tmp_path, texts):
    texts["poison"][0] = texts["align"][0] + "x"
    with pytest.raises(DataError, match=r"finetune\.poison: must hold no near-duplicate"):
        check_attack_data(*build(tmp_path, texts))


@pytest.mark.parametrize(
    ("size", "ratio", "message"),
    [
        (40, 0.5, r"finetune\.poison: must have 20 rows for n=40 at p=0\.5; got 10"),
        (40, 0.0, r"finetune\.data\.0: must have 40 rows for n=40 at p=0; got 10"),
    ],
)
def test_a_set_that_is_too_small_for_the_grid_is_refused(size, ratio, message, tmp_path, texts):
    attack = {
        "mode": "fresh",
        "poison_ratios": [ratio],
        "num_samples": [size],
        "learning_rates": [1e-3],
    }
    with pytest.raises(DataError, match=message):
        check_attack_data(*build(tmp_path, texts, attacks=[attack]))


def test_digests_follow_the_content_and_not_the_folder(tmp_path, texts):
    (tmp_path / "moved").mkdir()
    spec, stages = build(tmp_path, texts)
    moved, _ = build(tmp_path / "moved", texts)
    assert attack_content(spec) == attack_content(moved)
    suite = check_attack_data(spec, stages)["report"]["harm"]
    before = suite_content(suite)
    texts["poison"][3] = "another prompt altogether"
    texts["report"][3] = "a question nobody asked"
    changed, stages = build(tmp_path, texts)
    assert attack_content(changed) != attack_content(moved)
    assert suite_content(check_attack_data(changed, stages)["report"]["harm"]) != before


def test_an_attacker_has_the_search_split_too_and_its_sizes_are_checked(tmp_path, texts):
    attacker = {"kind": "search", "num_samples": 8}
    suites = check_attack_data(*build(tmp_path, texts, attacker=attacker))
    assert set(suites) == {"report", "search"}
    assert {sample.prompt for sample in suites["search"]["harm"].samples} == set(texts["search"])
    attacker["num_samples"] = 80
    with pytest.raises(DataError, match=r"finetune\.poison: must have 80 rows for n=80 at p=1"):
        check_attack_data(*build(tmp_path, texts, attacker=attacker))
