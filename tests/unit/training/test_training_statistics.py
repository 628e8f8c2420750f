import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from safemerge.config.statistics import StatisticsSpec
from safemerge.engines.chat import ChatFormat
from safemerge.errors import DataError, TrainingError
from safemerge.training.batch import EncodedSample
from safemerge.training.statistics import Gathering, load_measured_rows, statistics_digest

SET = {"source": {"kind": "file", "path": "/data/rows.jsonl"}, "response": "{answer}"}
ROWS = [
    EncodedSample((5, 9, 30, 31, 32), 2),
    EncodedSample((5, 40, 41, 42, 43, 44, 45), 4),
    EncodedSample((5, 50, 51), 1),
]


def spec(*quantities, **fields):
    given = {"name": "toy", "data": [SET], "quantities": list(quantities), **fields}
    return StatisticsSpec.model_validate(given)


@pytest.fixture
def model(tiny_base, exact):
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)


def gathered(model, declared, rows=ROWS, *, quantities=None):
    gathering = Gathering(model, declared, quantities or declared.quantities)
    for index, row in enumerate(rows):
        gathering.add(row, index=index)
    return gathering.finish()


def gradient(model, ids, targets, num_prompt):
    """Gradient of a row's negative log-probability, by autograd on the whole model."""
    model.zero_grad()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    logits = model(input_ids=torch.tensor([ids])).logits[0, num_prompt - 1 : -1]
    chosen = logits.log_softmax(-1)[torch.arange(len(targets)), torch.tensor(targets)]
    return dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(-chosen.sum(), list(model.parameters())),
            strict=True,
        )
    )


def close(found, expected, tolerance=1e-5):
    assert found.dtype == torch.float32
    scale = float(expected.abs().max()) or 1.0
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * scale)


def test_fisher_and_importance_are_means_over_rows_of_their_definitions(model):
    means, document = gathered(model, spec("fisher", "importance"))
    fisher, importance = {}, {}
    for row in ROWS:
        targets = row.ids[row.num_prompt :]
        for name, slope in gradient(model, row.ids, targets, row.num_prompt).items():
            weight = model.get_parameter(name).detach()
            fisher[name] = fisher.get(name, 0.0) + slope.square() / len(ROWS)
            score = (weight * slope).abs() / len(targets) / len(ROWS)
            importance[name] = importance.get(name, 0.0) + score
    assert set(means["fisher"]) == {name for name, _ in model.named_parameters()}
    for name in fisher:
        close(means["fisher"][name], fisher[name])
        close(means["importance"][name], importance[name])
    entries = torch.cat([item.flatten() for item in fisher.values()])
    assert document["fisher"]["norm"] == pytest.approx(float(entries.norm()), rel=1e-5)
    assert document["fisher"]["mean"] == pytest.approx(float(entries.mean()), rel=1e-5)
    assert document["num_rows"] == 3
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gram_matrices_are_means_over_tokens_of_each_linear_layers_inputs(model):
    means, document = gathered(model, spec("gram"))
    seen = {}

    def watch(name):
        def hook(_, arguments):
            seen.setdefault(name, []).append(arguments[0].detach().reshape(-1, 64))

        return hook

    layer = model.model.layers[1]
    watched = {"model.layers.1.self_attn.o_proj": layer.self_attn.o_proj,
               "model.layers.1.mlp.up_proj": layer.mlp.up_proj}  # fmt: skip
    for name, module in watched.items():
        module.register_forward_pre_hook(watch(name))
    for row in ROWS:
        model(input_ids=torch.tensor([row.ids]))
    for name, parts in seen.items():
        inputs = torch.cat(parts)
        assert len(inputs) == 15
        close(means["gram"][f"{name}.weight"], inputs.T @ inputs / 15)
        assert document["gram"]["tokens"][f"{name}.weight"] == 15
    assert len(means["gram"]) == 14
    assert "lm_head.weight" not in means["gram"]


def test_sampled_fisher_tends_to_the_fisher_under_the_models_own_distribution(model):
    row = EncodedSample((5, 9, 30, 31), 3)  # one answer token: the expectation is a plain sum
    many = 400
    means, document = gathered(model, spec("fisher", fisher="sampled", num_draws=many), [row])
    assert document["fisher"]["labels"] == "sampled"
    name = "model.norm.weight"
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([row.ids])).logits[0, 2].softmax(-1)
    squares = torch.stack(
        [
            gradient(model, row.ids, [token], row.num_prompt)[name].square()
            for token in range(len(chances))
        ]
    )
    expected = (chances[:, None] * squares).sum(0)
    spread = (chances[:, None] * (squares - expected).square()).sum(0).sqrt() / math.sqrt(many)
    distance = (means["fisher"][name].double() - expected) / spread
    assert float(distance.square().mean()) < 2.0  # 1 in expectation
    assert float(distance.abs().max()) < 5.0


def test_drawn_answers_depend_on_seed_and_place_alone(model):
    def fisher(**fields):
        means, _ = gathered(model, spec("fisher", fisher="sampled", **fields))
        return means["fisher"]["model.norm.weight"]

    assert torch.equal(fisher(seed=1), fisher(seed=1))
    assert not torch.equal(fisher(seed=1), fisher(seed=2))


def test_workers_that_share_the_rows_give_what_one_gives(model):
    """Each rank's sums are collected first, so that the test needs no process group."""
    declared = spec("fisher", "gram", "importance")
    alone, told = gathered(model, declared)
    ranks = [Gathering(model, declared, declared.quantities) for _ in range(2)]
    for index, row in enumerate(ROWS):
        ranks[index % 2].add(row, index=index)
    first: list[torch.Tensor] = []
    ranks[0].finish(all_reduce=lambda total: first.append(total.clone()))
    sent = iter(first)
    means, document = ranks[1].finish(all_reduce=lambda total: total.add_(next(sent)))
    assert document["gram"] == told["gram"]
    assert document["num_rows"] == told["num_rows"]
    assert document["fisher"]["norm"] == pytest.approx(told["fisher"]["norm"], rel=1e-6)
    for quantity, by_name in alone.items():
        for name, mean in by_name.items():
            torch.testing.assert_close(means[quantity][name], mean, rtol=1e-6, atol=1e-12)


def test_a_model_that_gives_no_probability_is_refused(model):
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
        model.model.layers[0].input_layernorm.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="toy: an answer's log-probability must be finite"):
        gathered(model, spec("fisher"))
    with pytest.raises(TrainingError, match="gram must be finite"):
        gathered(model, spec("gram"))


# --- rows -------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    def files(*counts):
        sets = []
        for at, count in enumerate(counts):
            path = tmp_path / f"rows{at}.jsonl"
            rows = [{"prompt": f"ask {at} {row}", "answer": f"tell {row}"} for row in range(count)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            source = {"kind": "file", "path": str(path)}
            sets.append({"source": source, "prompt": "{prompt}", "response": "{answer}"})
        return sets

    return files


def test_rows_are_the_first_of_each_set_by_its_share(files, tiny_base):
    chat = ChatFormat(tiny_base)
    first, second = files(10, 4)
    declared = spec("gram", data=[{**first, "weight": 3.0}, second], num_samples=9)
    rows = load_measured_rows(declared, chat)
    told = [chat.tokenizer.decode(list(row.ids)) for row in rows]
    assert [sum(f"ask {at} " in text for text in told) for at in range(2)] == [7, 2]
    assert len(set(rows)) == 9
    assert all(row.num_prompt < len(row.ids) for row in rows)
    fewer = load_measured_rows(declared.model_copy(update={"num_samples": 4}), chat)
    assert rows[:3] == fewer[:3]


def test_a_set_with_fewer_rows_than_its_share_is_refused(files, tiny_base):
    declared = spec("gram", data=files(3), num_samples=5)
    with pytest.raises(DataError, match=r"toy: data\.0: .* got 3 rows, share 5 of 5"):
        load_measured_rows(declared, ChatFormat(tiny_base))


def test_the_digest_counts_what_decides_the_values_and_nothing_else():
    def key(declared, rows=ROWS, model="m", base="b"):
        return statistics_digest(declared, rows, model=model, base=base)

    plain = spec("fisher", "gram")
    same = [
        spec("gram", "fisher"),
        spec("fisher", "gram", name="other", workers={"num_workers": 2}, seed=4),
    ]
    other = [
        spec("fisher"),
        spec("fisher", "gram", fisher="sampled"),
        spec("fisher", "gram", dtype="bfloat16"),
    ]
    assert {key(item) for item in same} == {key(plain)}
    keys = {key(item) for item in other} | {
        key(plain, ROWS[:2]), key(plain, model="n"), key(plain, base="c")
    }  # fmt: skip
    assert len(keys) == 6
    assert key(plain) not in keys
