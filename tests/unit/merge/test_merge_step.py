import json
import math

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from safemerge.config.recipe import MergeRecipe, Method, Step
from safemerge.config.step import STEPS
from safemerge.errors import MergeError
from safemerge.merge import SpectrumCache, ThresholdCache, merge_tensor, models_read
from safemerge.merge.step import alignment_projection
from safemerge.merge.stream import merged_tensors
from safemerge.weights import open_checkpoint

METHOD = TypeAdapter(Method)
STEP = TypeAdapter(Step)
NAME = "model.layers.0.mlp.up_proj.weight"
SHAPE = (9, 6)
TASK = METHOD.validate_python({"name": "task_arithmetic", "weights": {"math": 0.5, "code": 0.25}})
SUM = METHOD.validate_python({"name": "task_arithmetic", "weights": {"math": 1.0}})


def tensors(shape=SHAPE):
    generator = torch.Generator().manual_seed(4)
    names = ("base", "math", "code", "aligned", "harmful")
    return {name: torch.randn(shape, generator=generator) for name in names}


def step(name, **fields):
    return STEP.validate_python({"name": name, **fields})


def merged(method, steps, given, *, tensor=NAME, **options):
    experts = {name: item for name, item in given.items() if name != "base"}
    return merge_tensor(
        method, tensor=tensor, base=given["base"], experts=experts, steps=steps, **options
    )


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def exact(given):
    return {name: item.double() for name, item in given.items()}


def projected(update, alignment):
    """C Delta and its cosine, with C written out."""
    matrix = update.reshape(update.shape[0], -1)
    change = alignment.reshape(update.shape[0], -1)
    projector = change @ change.T / change.norm()
    image = projector @ matrix
    cosine = float((image * matrix).sum() / (image.norm() * matrix.norm()))
    return image.reshape(update.shape), cosine


def test_the_table_has_every_step_of_the_recipe():
    declared = STEP.json_schema()["discriminator"]["mapping"]
    assert set(STEPS) == set(declared)
    for name, row in STEPS.items():
        assert row.name == name
        assert row.source.url.startswith("https://arxiv.org/abs/")
        assert row.source.variant.endswith(".")


def test_resta_adds_the_safety_vector_to_the_merge():
    given, at = tensors(), exact(tensors())
    resta = step("resta", aligned="aligned", unaligned="harmful", scale=0.7)
    expected = at["base"] + 0.5 * (at["math"] - at["base"]) + 0.25 * (at["code"] - at["base"])
    expected = expected + 0.7 * (at["aligned"] - at["harmful"])
    close(merged(TASK, [resta], given), expected)


def test_merge_align_interpolates_with_the_aligned_model():
    given, at = tensors(), exact(tensors())
    align = step("merge_align", aligned="aligned", alpha=0.6)
    domain, safety = at["math"] - at["base"], at["aligned"] - at["base"]
    close(merged(SUM, [align], given), at["base"] + 0.6 * domain + 0.4 * safety)


def test_pre_post_undoes_part_of_each_tuning_before_the_method():
    given, at = tensors(), exact(tensors())
    mixed = {name: 0.3 * at[name] + 0.7 * at["aligned"] for name in ("math", "code")}
    expected = (
        at["base"] + 0.5 * (mixed["math"] - at["base"]) + 0.25 * (mixed["code"] - at["base"])
    )
    close(merged(TASK, [step("pre_post", before="aligned", alpha=0.3)], given), expected)
    from_base = merged(SUM, [step("pre_post", alpha=0.3)], given)
    close(from_base, 0.3 * at["math"] + 0.7 * at["base"])


def low_rank(change, rank):
    """U U^T V by the eigenvectors of V V^T, an independent way to the leading directions."""
    values, vectors = torch.linalg.eigh(change @ change.T)
    leading = vectors[:, values.argsort(descending=True)[:rank]]
    return leading @ leading.T @ change


@pytest.mark.parametrize("rank", [1, 3, 50])
def test_lox_adds_the_leading_directions_of_the_alignment(rank):
    given, at = tensors(), exact(tensors())
    change = at["aligned"] - at["harmful"]
    lox = step("lox", aligned="aligned", unaligned="harmful", rank=rank, alpha=1.25)
    expected = at["math"] + 1.25 * low_rank(change, rank)
    close(merged(SUM, [lox], given), expected)
    if rank > min(SHAPE):
        close(merged(SUM, [lox], given), at["math"] + 1.25 * change)


def test_lox_of_the_aligned_model_is_the_papers():
    given, at = tensors(), exact(tensors())
    itself = METHOD.validate_python({"name": "task_arithmetic", "weights": {"aligned": 1.0}})
    change = at["aligned"] - at["base"]
    expected = at["base"] + change + 0.5 * low_rank(change, 2)
    lox = step("lox", aligned="aligned", rank=2, alpha=0.5)
    close(merged(itself, [lox], given), expected)
    on_it = step("lox", on="experts", experts=["aligned"], aligned="aligned", rank=2, alpha=0.5)
    close(merged(itself, [on_it], given), expected)


def test_lox_leaves_vectors_embeddings_and_what_alignment_left():
    lox = step("lox", aligned="aligned")
    vectors = tensors((7,))
    assert torch.equal(merged(SUM, [lox], vectors), merged(SUM, [], vectors))
    given = tensors()
    name = "model.embed_tokens.weight"
    found = merged(SUM, [lox], given, tensor=name)
    assert torch.equal(found, merged(SUM, [], given, tensor=name))
    given["aligned"] = given["base"].clone()
    assert torch.equal(merged(SUM, [lox], given), merged(SUM, [], given))


def test_lox_keeps_its_directions_between_candidates_by_rank():
    given, spectra = tensors(), SpectrumCache()
    for alpha, rank, held in ((0.5, 2, 1), (1.5, 2, 1), (0.5, 4, 2)):
        lox = step("lox", aligned="aligned", rank=rank, alpha=alpha)
        kept = merged(SUM, [lox], given, spectra=spectra)
        assert torch.equal(kept, merged(SUM, [lox], given))
        assert len(spectra) == held
    # Two models beside the base: not kept, and not mistaken for one.
    lox = step("lox", aligned="aligned", unaligned="harmful", rank=2)
    kept = merged(SUM, [lox], given, spectra=spectra)
    assert torch.equal(kept, merged(SUM, [lox], given))
    assert len(spectra) == 2


def test_safe_lora_projects_what_is_below_the_threshold():
    given, at = tensors(), exact(tensors())
    image, cosine = projected(at["math"] - at["base"], at["aligned"] - at["base"])
    assert 0.1 < cosine < 0.95
    below = step("safe_lora", aligned="aligned", threshold=cosine + 0.01)
    above = step("safe_lora", aligned="aligned", threshold=cosine - 0.01)
    close(merged(SUM, [below], given), at["base"] + image)
    close(merged(SUM, [above], given), at["math"])


def test_safe_lora_leaves_vectors_and_embeddings():
    all_of_them = step("safe_lora", aligned="aligned", threshold=1.0)
    vectors = tensors((7,))
    close(merged(SUM, [all_of_them], vectors), vectors["math"].double())
    given = tensors()
    found = merged(SUM, [all_of_them], given, tensor="model.embed_tokens.weight")
    close(found, given["math"].double())


@pytest.mark.parametrize("shape", [SHAPE, (8,), (3, 4, 2)], ids=str)
def test_safe_merge_mixes_the_safe_update_below_the_threshold(shape):
    given, at = tensors(shape), exact(tensors(shape))
    change = at["aligned"] - at["harmful"]
    update = at["math"] - at["base"]
    rows = shape if len(shape) > 1 else (*shape, 1)
    _, cosine = projected(update.reshape(rows), change.reshape(rows))
    fields = {"aligned": "aligned", "unaligned": "harmful", "safe": "code", "alpha": 0.2}
    below = step("safe_merge", threshold=min(1.0, cosine + 0.01), **fields)
    above = step("safe_merge", threshold=cosine - 0.01, **fields)
    close(merged(SUM, [below], given), at["base"] + 0.8 * update + 0.2 * (at["code"] - at["base"]))
    close(merged(SUM, [above], given), at["math"])


def test_a_projection_needs_an_update_and_an_alignment():
    zero, some = torch.zeros(3, 2), torch.ones(3, 2)
    assert alignment_projection(zero, some) is None
    assert alignment_projection(some, zero) is None
    assert alignment_projection(torch.zeros(0, 2), torch.zeros(0, 2)) is None
    across = alignment_projection(torch.eye(2)[:, :1].clone(), torch.eye(2)[:, 1:].clone())
    assert across is not None
    assert across.cosine == 0.0
    along = alignment_projection(some, some)
    assert along is not None
    assert math.isclose(along.cosine, 1.0, rel_tol=1e-6)


def test_steps_run_in_order_and_on_the_experts_first():
    given, at = tensors(), exact(tensors())
    steps = [
        step("resta", aligned="aligned", unaligned="harmful", scale=2.0),
        step("merge_align", aligned="aligned", alpha=0.5),
        step("pre_post", alpha=0.5),
    ]
    tuned = 0.5 * at["math"] + 0.5 * at["base"]
    expected = 0.5 * (tuned + 2.0 * (at["aligned"] - at["harmful"])) + 0.5 * at["aligned"]
    close(merged(SUM, steps, given), expected)
    swapped = merged(SUM, [steps[1], steps[0], steps[2]], given)
    mixed = 0.5 * tuned + 0.5 * at["aligned"]
    close(swapped, mixed + 2.0 * (at["aligned"] - at["harmful"]))


def test_only_the_named_experts_are_changed():
    given, at = tensors(), exact(tensors())
    one = step("pre_post", alpha=0.0, experts=["code"])
    expected = at["base"] + 0.5 * (at["math"] - at["base"])
    close(merged(TASK, [one], given), expected)


def test_an_expert_that_the_step_reads_is_not_changed_by_it():
    method = METHOD.validate_python(
        {"name": "task_arithmetic", "weights": {"math": 1.0, "aligned": 1.0}}
    )
    given, at = tensors(), exact(tensors())
    found = merged(method, [step("pre_post", before="aligned", alpha=0.0)], given)
    close(found, at["base"] + 2.0 * (at["aligned"] - at["base"]))


@pytest.mark.parametrize(
    "idle",
    [
        step("resta", aligned="aligned", unaligned="harmful", scale=0.0),
        step("merge_align", aligned="aligned", alpha=1.0),
        step("pre_post", before="aligned", alpha=1.0),
        step("safe_merge", aligned="aligned", safe="aligned", alpha=0.0),
        step("safe_lora", aligned="aligned", threshold=-1.0),
        step("lox", aligned="aligned", alpha=0.0),
    ],
    ids=lambda item: item.name,
)
def test_an_idle_step_changes_no_bit_and_reads_nothing(idle):
    given = tensors()
    assert models_read(TASK, tensor=NAME, steps=[idle]) == ("code", "math")
    alone = {name: given[name] for name in ("base", "math", "code")}
    assert torch.equal(merged(TASK, [idle], alone), merged(TASK, [], alone))


def test_a_step_reads_its_models():
    resta = step("resta", aligned="aligned", unaligned="harmful")
    project = step("safe_lora", aligned="aligned")
    assert models_read(SUM, tensor=NAME, steps=[resta]) == ("aligned", "harmful", "math")
    assert models_read(SUM, tensor=NAME, steps=[project]) == ("aligned", "math")
    nothing = METHOD.validate_python({"name": "task_arithmetic", "weights": {"math": 0.0}})
    assert models_read(nothing, tensor=NAME, steps=[project]) == ()
    given = {name: item for name, item in tensors().items() if name != "harmful"}
    with pytest.raises(MergeError, match="every model with a weight must be given; got no 'harm"):
        merged(SUM, [resta], given)


def test_the_result_is_rounded_once_after_the_last_step():
    given = {name: item.bfloat16() for name, item in tensors().items()}
    resta = step("resta", aligned="aligned", unaligned="harmful", scale=0.3)
    full = merged(TASK, [resta], given, dtype=torch.float32)
    assert torch.equal(merged(TASK, [resta], given), full.bfloat16())


def test_a_step_that_overflows_is_refused():
    given = {name: item.half() for name, item in tensors().items()}
    resta = step("resta", aligned="aligned", unaligned="harmful", scale=1e6)
    with pytest.raises(MergeError, match=rf"tensor '{NAME}': merged weights must be finite"):
        merged(TASK, [resta], given)


def test_inputs_are_unchanged_and_not_shared():
    given = tensors()
    copies = {name: item.clone() for name, item in given.items()}
    steps = [
        step("safe_lora", aligned="aligned", threshold=1.0),
        step("resta", aligned="aligned", unaligned="harmful", scale=0.0),
        step("merge_align", aligned="aligned", alpha=0.0),
    ]
    merged(TASK, steps, given).fill_(7.0)
    for name, item in given.items():
        assert torch.equal(item, copies[name])


@pytest.mark.parametrize("name", ["ties", "tsv_m"])
def test_what_is_kept_between_candidates_is_of_the_experts_as_they_are(name):
    method = METHOD.validate_python({"name": name, "weights": {"math": 0.5, "code": 0.7}})
    given = tensors()
    thresholds, spectra = ThresholdCache(), SpectrumCache()
    plain = merged(method, [], given, thresholds=thresholds, spectra=spectra)
    mixing = [step("pre_post", before="aligned", alpha=0.5)]
    stepped = merged(method, mixing, given, thresholds=thresholds, spectra=spectra)
    assert torch.equal(stepped, merged(method, mixing, given))
    again = merged(method, [], given, thresholds=thresholds, spectra=spectra)
    assert torch.equal(again, plain)


def test_a_recipe_with_steps_streams_and_reads_only_what_it_needs(tmp_path):
    given = tensors()
    refs = []
    for name, tensor in given.items():
        folder = tmp_path / name
        folder.mkdir()
        save_file({NAME: tensor}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 1}))
        refs.append({"name": name, "path": str(folder)})
    recipe = MergeRecipe.model_validate(
        {
            "base": refs[0],
            "experts": refs[1:],
            "method": {"name": "task_arithmetic", "weights": {"math": 0.5}},
            "steps": [
                {"name": "merge_align", "aligned": "aligned", "alpha": {"default": [0.4, 1.0]}}
            ],
        }
    )
    checkpoints = {ref["name"]: open_checkpoint(ref["path"]) for ref in refs}
    ((name, found),) = merged_tensors(recipe, checkpoints)
    half = METHOD.validate_python({"name": "task_arithmetic", "weights": {"math": 0.5}})
    align = step("merge_align", aligned="aligned", alpha=0.4)
    assert name == NAME
    assert torch.equal(found, merged(half, [align], given))
