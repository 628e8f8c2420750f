import pytest
import torch
from pydantic import TypeAdapter

from safemerge.config.recipe import MergeRecipe, Method, Step
from safemerge.errors import MergeError
from safemerge.merge import merge_tensor, statistics_read
from safemerge.merge.measured import check_statistics
from safemerge.merge.regmean import least_squares_mean
from safemerge.merge.step import most_important
from safemerge.testing.statistics import random_statistics, write_statistics
from safemerge.weights import ModelStatistics, TensorStatistics

METHOD = TypeAdapter(Method)
STEP = TypeAdapter(Step)
NAME = "model.layers.0.mlp.up_proj.weight"
SHAPE = (5, 4)


def method(name, **fields):
    return METHOD.validate_python({"name": name, "weights": {"a": 1.0, "b": 1.0}, **fields})


def tensors(shape=SHAPE):
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name in ("base", "a", "b")}


def merged(chosen, statistics, *, steps=(), tensor=NAME, shape=SHAPE):
    given = tensors(shape)
    return merge_tensor(
        chosen,
        tensor=tensor,
        base=given["base"],
        experts={"a": given["a"], "b": given["b"]},
        steps=steps,
        statistics=statistics,
    )


def measured(**changed):
    found = random_statistics(NAME, SHAPE, ("a", "b"))
    return {**found, "b": found["b"]._replace(**changed)}


# --- bad statistics ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_a_model_of_which_nothing_was_measured_is_refused(name):
    with pytest.raises(MergeError, match=r"up_proj.weight': statistics of every .* none of 'a'"):
        merged(method(name), {})


@pytest.mark.parametrize(
    ("name", "quantity", "right"), [("fisher", "fisher", SHAPE), ("regmean", "gram", (4, 4))]
)
def test_statistics_that_are_missing_misshapen_or_not_finite_are_refused(name, quantity, right):
    with pytest.raises(MergeError, match=rf"{quantity} of every .* got none of 'b'"):
        merged(method(name), measured(**{quantity: None}))
    words = rf"{quantity} of 'b' must have shape \({right[0]}, {right[1]}\); got \(3, 3\)"
    with pytest.raises(MergeError, match=words):
        merged(method(name), measured(**{quantity: torch.ones(3, 3)}))
    broken = torch.ones(right)
    broken[1, 2] = float("nan")
    with pytest.raises(MergeError, match=rf"{quantity} of 'b' must be finite"):
        merged(method(name), measured(**{quantity: broken}))


def test_a_fisher_of_zero_is_refused_unless_a_floor_holds_it_up():
    with pytest.raises(MergeError, match=r"Fisher of 'b' must not be zero everywhere"):
        merged(method("fisher"), measured(fisher=torch.zeros(SHAPE), fisher_norm=0.0))
    empty = {name: TensorStatistics(fisher=torch.zeros(SHAPE)) for name in ("a", "b")}
    with pytest.raises(MergeError, match=r"got 20 or more entries with a Fisher of zero in all"):
        merged(method("fisher", floor=0.0), empty)
    given = tensors()
    mean = (given["a"] + given["b"]) / 2
    torch.testing.assert_close(merged(method("fisher"), empty), mean)


def test_entries_no_model_knows_of_stay_the_targets():
    empty = {name: TensorStatistics(fisher=torch.zeros(SHAPE)) for name in ("a", "b")}
    found = merged(method("fisher", target="b"), empty)
    torch.testing.assert_close(found, tensors()["b"])


def test_a_merge_of_nothing_is_refused():
    nothing = method("fisher", weights={"a": 0.0, "b": 0.0})
    with pytest.raises(MergeError, match="some weight must not be zero"):
        merged(nothing, measured())


# --- RegMean ----------------------------------------------------------------------------


def rank_one(at, columns=4):
    one = torch.zeros(columns, dtype=torch.float64)
    one[at] = 1.0
    return torch.outer(one, one)


def test_a_singular_gram_matrix_is_refused_and_a_ridge_takes_the_mean_there():
    matrices = [tensors()[name].double() for name in ("a", "b")]
    grams = [rank_one(0) + rank_one(1), rank_one(1) + rank_one(2)]

    def fit(**fields):
        return least_squares_mean(matrices, grams, [1.0, 1.0], where="tensor 'x'", **fields)

    for off_diagonal in (1.0, 0.5):
        with pytest.raises(MergeError, match=r"tensor 'x': the Gram .* singular one of 4 inputs"):
            fit(off_diagonal=off_diagonal, ridge=0.0)
    found = fit(off_diagonal=0.9, ridge=1e-6)
    mean = (matrices[0] + matrices[1]) / 2
    expected = torch.stack([matrices[0][:, 0], mean[:, 1], matrices[1][:, 2], mean[:, 3]], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_nearly_singular_gram_matrix_is_refused_at_the_exact_fit_only():
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)).double()
    inputs[:, 3] = inputs[:, 2] * 2.0
    gram = inputs.T @ inputs
    matrices = [tensors()[name].double() for name in ("a", "b")]
    with pytest.raises(MergeError, match="singular"):
        least_squares_mean(matrices, [gram, gram], [1.0, 1.0], off_diagonal=1.0, ridge=0.0)
    found = least_squares_mean(matrices, [gram, gram], [1.0, 1.0], off_diagonal=0.9, ridge=0.0)
    torch.testing.assert_close(found, (matrices[0] + matrices[1]) / 2)


@pytest.mark.parametrize(
    ("tensor", "shape"), [("model.norm.weight", (7,)), ("model.embed_tokens.weight", (9, 4))]
)
def test_what_is_no_linear_layer_is_averaged(tensor, shape):
    found = merged(
        method("regmean", weights={"a": 3.0, "b": 1.0}),
        random_statistics(tensor, shape, ("a", "b")),
        tensor=tensor,
        shape=shape,
    )
    given = tensors(shape)
    torch.testing.assert_close(found, 0.75 * given["a"] + 0.25 * given["b"])


# --- LED --------------------------------------------------------------------------------


def test_most_important_takes_the_share_asked_for_and_never_a_zero():
    scores = torch.tensor([[0.0, 5.0, 1.0], [3.0, 0.0, 2.0]])
    assert most_important(scores, density=0.5).sum() == 3
    assert most_important(scores, density=0.01).nonzero().tolist() == [[0, 1]]
    assert most_important(scores, density=1.0).sum() == 4
    assert most_important(torch.zeros(3), density=1.0).sum() == 0
    assert most_important(torch.zeros(0, 4), density=0.5).shape == (0, 4)


def test_led_reads_every_merged_expert_and_refuses_missing_importance():
    task = method("task_arithmetic")
    led = STEP.validate_python({"name": "led"})
    with pytest.raises(MergeError, match=r"importance of every merged model .* none of 'a'"):
        merged(task, {}, steps=[led])
    with pytest.raises(MergeError, match=r"base importance of every .* none of 'b'"):
        merged(task, measured(base_importance=None), steps=[led])


def test_led_counts_only_experts_that_take_part():
    led = STEP.validate_python({"name": "led", "density": 1.0})
    nothing = merged(method("task_arithmetic"), measured(), steps=[led])
    assert torch.equal(nothing, tensors()["base"])  # all is important to both, so to neither
    alone = method("task_arithmetic", weights={"a": 1.0, "b": 0.0})
    torch.testing.assert_close(merged(alone, measured(), steps=[led]), tensors()["a"])


# --- what is read -----------------------------------------------------------------------


def test_only_models_with_weight_are_read_and_only_what_is_needed():
    half = method("fisher", weights={"base": 1.0, "a": 0.5, "b": 0.0})
    assert statistics_read(half, tensor=NAME) == {
        "a": frozenset({"fisher"}),
        "base": frozenset({"fisher"}),
    }
    led = STEP.validate_python({"name": "led"})
    both = statistics_read(half, tensor=NAME, steps=[led])
    assert both["a"] == {"fisher", "importance"}
    assert both["base"] == {"fisher"}
    assert statistics_read(method("task_arithmetic"), tensor=NAME) == {}


@pytest.fixture
def open_statistics(tiny_experts, tmp_path):
    def open_statistics(**counts):
        folder = write_statistics(tmp_path / "measured", tiny_experts["math"], model="math")
        found = ModelStatistics(folder)
        for name in found.document["gram"]["tokens"]:
            found.document["gram"]["tokens"][name] = counts.get("tokens", 1000)
        return found

    return open_statistics


def recipe(**fields):
    return MergeRecipe.model_validate(
        {
            "base": {"name": "base", "path": "/base"},
            "experts": [{"name": "math", "path": "/math", "statistics": {"path": "/measured"}}],
            "method": {"name": "regmean", "weights": {"math": 1.0}, **fields},
        }
    )


def test_a_recipe_is_refused_before_work_if_statistics_cannot_suffice(open_statistics):
    with pytest.raises(MergeError, match=r"statistics of every .* none of 'math'"):
        check_statistics(recipe(), {})
    few = {"math": open_statistics(tokens=63)}
    with pytest.raises(MergeError, match="got 63 tokens for 128 inputs"):
        check_statistics(recipe(off_diagonal=1.0), few)
    check_statistics(recipe(off_diagonal=0.9), few)
    check_statistics(recipe(off_diagonal=1.0, ridge=1e-3), few)
    few["math"].document["quantities"] = ["fisher"]
    with pytest.raises(MergeError, match="model 'math': statistics must hold gram; got fisher"):
        check_statistics(recipe(), few)
