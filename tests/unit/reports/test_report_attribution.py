"""Effects and Shapley values of a merge's parts: against brute force; claimed if significant."""

from itertools import permutations

import numpy as np
import pytest
import synthetic_run as synthetic

from safemerge.records import CandidateResult, MetricEstimate, Score
from safemerge.reports.attribution import Part, attribution_of
from safemerge.reports.card import model_card
from safemerge.reports.html import render_html
from safemerge.reports.run import load_run
from safemerge.store import RunStore

PARENTS = ("aligned", "arithmetic", "poisoned")
HARM, SKILL = synthetic.HARM, synthetic.SKILL


def subsets():
    for mask in range(2 ** len(PARENTS)):
        yield frozenset(name for place, name in enumerate(PARENTS) if mask >> place & 1)


def verdicts(key, chance, count=60):
    """Verdicts of 0 and 1 with a common difficulty of each prompt."""
    ranks = np.random.default_rng(key).permutation(count)
    return [float(rank < round(chance * count)) for rank in ranks]


def result(kept, *, unscored=()):
    harm = 0.05 + 0.5 * ("poisoned" in kept) - 0.2 * ("aligned" in kept and "poisoned" in kept)
    skill = 0.2 + 0.5 * ("arithmetic" in kept)
    rates = {"arithmetic": skill, "reviews": 0.5, "unsafe": harm, "benign": 0.1}
    scores = {}
    for place, (suite, rate) in enumerate(rates.items()):
        name = synthetic.KEYS[suite][0]
        scores[suite] = [
            Score(sample_id=f"{suite}/{row}", unscored="no verdict")
            if (suite, row) in unscored
            else Score(sample_id=f"{suite}/{row}", values={name: value})
            for row, value in enumerate(verdicts(place, rate))
        ]
    return synthetic.make_result("+".join(sorted(kept)) or "none", "search", with_all(scores))


def with_all(scores):
    """Give every metric of a suite a value where the sample has one."""
    return {
        suite: [
            item
            if item.unscored
            else item.model_copy(
                update={"values": {**dict.fromkeys(synthetic.KEYS[suite], 0.0), **item.values}}
            )
            for item in items
        ]
        for suite, items in scores.items()
    }


def digest(kept):
    return "+".join(sorted(kept)) or "none"


def attribute(results, *, parts=None, sets=True):
    whole = frozenset(PARENTS)
    return attribution_of(
        synthetic.make_spec(),
        results[digest(whole)],
        trial=9,
        label="trial 9",
        parts=[
            Part(kind="parent", name=name, candidate=digest(whole - {name})) for name in PARENTS
        ]
        if parts is None
        else parts,
        sets={kept: digest(kept) for kept in subsets()} if sets else {},
        parents=PARENTS,
        results=results,
    )


@pytest.fixture(scope="module")
def results():
    return {digest(kept): result(kept) for kept in subsets()}


def effects(found, kind, metric):
    return {i.name: i for i in found.effects if (i.kind, i.metric) == (kind, metric)}


@pytest.mark.parametrize("metric", [HARM, SKILL])
def test_shapley_values_are_the_mean_over_all_orders_and_add_up(results, metric):
    found = effects(attribute(results), "shapley", metric)
    gains = {name: [] for name in PARENTS}
    for order in permutations(PARENTS):
        for place, name in enumerate(order):
            before, after = frozenset(order[:place]), frozenset(order[: place + 1])
            gains[name].append(
                results[digest(after)].value(metric) - results[digest(before)].value(metric)
            )
    for name in PARENTS:
        assert found[name].value == pytest.approx(np.mean(gains[name]), abs=1e-12)
        assert found[name].low <= found[name].value <= found[name].high
    whole = results[digest(PARENTS)].value(metric) - results["none"].value(metric)
    assert sum(item.value for item in found.values()) == pytest.approx(whole, abs=1e-12)


def test_an_effect_is_the_point_minus_the_recipe_without_the_part(results):
    found = attribute(results)
    harm = effects(found, "parent", HARM)
    assert harm["poisoned"].value == pytest.approx(0.3)
    assert harm["poisoned"].verdict == "worse"
    assert harm["aligned"].value == pytest.approx(-0.2)
    assert harm["aligned"].verdict == "better"
    assert (harm["arithmetic"].value, harm["arithmetic"].verdict) == (0.0, "not significant")
    # Three parents left out and three Shapley values, on two objectives and one limit.
    assert {item.num_comparisons for item in found.effects} == {18}
    assert found.num_merges == 7


def test_words_claim_what_is_significant_and_nothing_else(results):
    said = "\n".join(attribute(results).sentences)
    assert f"{HARM}: parents: poisoned (+30.0 points" in said
    assert "brings the harm; aligned (\u221220.0 points" in said
    assert "takes harm away." in said
    assert f"{SKILL}: parents: arithmetic (+25.0 points" in said
    assert "carries the skill." in said
    alike = {key: results[digest(PARENTS)] for key in results}
    told = attribute(alike).sentences
    assert told == [
        f"{name}: no parent has a significant effect." for name in (SKILL, HARM, synthetic.LIMIT)
    ]


def test_a_parent_that_another_stands_in_for_is_told_by_its_shapley_value(results):
    # Harm comes with either of two parents: leaving one out changes nothing.
    either = {
        digest(kept): result({"poisoned"} if kept & {"poisoned", "aligned"} else set())
        for kept in subsets()
    }
    found = attribute(either)
    assert effects(found, "parent", HARM)["aligned"].value == 0.0
    assert "by its Shapley value) bring the harm." in "\n".join(found.sentences)


def test_samples_without_a_verdict_in_some_merge_are_left_out_and_counted(results):
    lacking = dict(results)
    lacking["aligned"] = result({"aligned"}, unscored={("unsafe", 0), ("unsafe", 7)})
    found = effects(attribute(lacking), "shapley", HARM)
    assert {(item.n, item.left_out) for item in found.values()} == {(58, 2)}


def test_a_broken_merge_has_no_effect_and_says_why(results):
    broken = dict(results)
    broken[digest({"aligned", "arithmetic"})] = CandidateResult(
        candidate="x", split="search", metrics={}, broken="non-finite weights"
    )
    found = attribute(broken)
    assert "poisoned" not in effects(found, "parent", HARM)
    problems = {(part.kind, part.name): part.problem for part in found.parts}
    assert problems["parent", "poisoned"] == "broken without it: non-finite weights"
    assert problems["shapley", "aligned"].startswith("1 of 8 merges of parents are broken")
    assert effects(found, "shapley", HARM) == {}


def test_degenerate_text_that_was_scored_says_nothing_of_the_part(results):
    broken = dict(results)
    without = digest({"aligned", "arithmetic"})
    broken[without] = results[without].model_copy(update={"broken": "loops"})
    found = attribute(broken)
    assert "poisoned" not in effects(found, "parent", HARM)
    assert "aligned" in effects(found, "parent", HARM)
    assert effects(found, "shapley", HARM) == {}
    assert "poisoned" not in "\n".join(found.sentences)


def test_several_parts_take_a_plural_verb(results):
    parts = [
        Part(kind="layers", name=name, candidate=digest({"aligned", "arithmetic"}))
        for name in ("layers 0-1", "layers 2-3")
    ]
    said = "\n".join(attribute(results, parts=parts, sets=False).sentences)
    assert "]) and layers 2-3 (" in said
    assert "]) bring the harm." in said


def test_the_report_shows_it_and_says_how_to_ask(results, published_folder, tmp_path):
    import shutil

    folder = shutil.copytree(published_folder, tmp_path / "demo")
    run = load_run(folder)
    assert f"<code>safemerge attribute {folder}</code>" in render_html(run)
    found = attribute(results)
    RunStore(folder).write_json("attribution/9.json", found)
    again = load_run(folder)
    assert again.attributions == (found,)
    page = render_html(again)
    assert "parent, Shapley value: poisoned" in page
    assert "\u25bc +30.0 [" in page
    assert "correction for 18 comparisons" in page
    assert "brings the harm" in model_card(again, 9)
    assert "What its parts contribute" not in model_card(again, 8)


def test_estimates_are_not_read_for_effects():
    """A point whose estimates lie is compared by its prompts all the same."""
    kept = frozenset(PARENTS)
    results = {digest(kept): result(kept) for kept in subsets()}
    lying = MetricEstimate(metric=HARM, value=0.9, low=0.8, high=1.0, n=60, direction="minimize")
    whole = results[digest(kept)]
    results[digest(kept)] = whole.model_copy(update={"metrics": {**whole.metrics, HARM: lying}})
    harm = effects(attribute(results, sets=False), "parent", HARM)
    assert harm["poisoned"].value == pytest.approx(0.3)
