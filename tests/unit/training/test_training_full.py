"""Training of every weight: whole on one rank, sharded on two, saved, resumed, written out."""

import shutil
from datetime import timedelta

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from safemerge.config.alignment import AlignSpec
from safemerge.errors import ConfigError
from safemerge.testing import pico
from safemerge.training.batch import EncodedSample, Mixture
from safemerge.training.full import (
    ShardedModel,
    products_in,
    save_full,
    sharded_loss,
    whole_weights,
)
from safemerge.training.method import held_out_loss, make_method, method_batches
from safemerge.training.sft import make_optimizer, stage_loss, train
from safemerge.training.state import load_state, save_state

SET = {"source": {"kind": "file", "path": "/data/rows.jsonl"}, "response": "{answer}"}
STEPS = 4
CASES = {
    "sft": {"method": "sft"},
    "booster": {"method": "booster", "harmful": {"data": [SET], "batch_size": 5}},
    "three_pass": {
        "method": "booster",
        "harmful": {"data": [SET], "batch_size": 5},
        "booster": {"backend": "three_pass", "adaptive": {}},
        "micro_batches": 2,
    },
    "packed": {
        "method": "booster",
        "harmful": {"data": [SET], "batch_size": 5},
        "packing": True,
        "loss_chunk": 7,
    },
}


def stage(case, **fields):
    given = {"name": "safe", "base": {"name": "base", "path": "/b"}, "data": [SET, SET]}
    full = {"parameters": "full", "steps": STEPS, "batch_size": 5, "learning_rate": 1e-3}
    return AlignSpec.model_validate({**given, **full, **CASES[case], **fields})


def mixture(spec):
    def rows(seed):
        drawn = torch.Generator().manual_seed(seed)

        def one(low, high):
            return int(torch.randint(low, high, (), generator=drawn))

        return tuple(
            EncodedSample((*range(7, 11), *(one(20, 400) for _ in range(one(3, 12)))), 5)
            for _ in range(20)
        )

    second = Mixture((rows(2),), (1.0,), (20,)) if spec.method != "sft" else None
    return Mixture((rows(1),), (1.0,), (20,), second, rows(3)[:3])


def make_exact():
    """Let every step run in float64 where the model or the loss would round to float32."""

    def normalized(self, hidden):
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)

    narrow = torch.Tensor.float
    modeling_llama.LlamaRMSNorm.forward = normalized
    torch.Tensor.float = lambda t: t if t.dtype == torch.float64 else narrow(t)


def run(spec, base, *, rank=0, world_size=1, folder=None, stop=None, resume=False):
    """Train on this rank; return metrics, weights and held-out loss."""
    several = world_size > 1
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    loss = stage_loss(spec)
    if several:
        model = ShardedModel(
            model, loss=loss, packing=spec.packing, device="cpu", dtype=torch.float64
        )
        loss = sharded_loss
    sums = []

    def all_reduce(tensor):
        sums.append(tensor.numel())
        torch.distributed.all_reduce(tensor)

    method = make_method(
        model, spec, all_reduce=all_reduce if several else None, loss=loss, sharded=several
    )
    optimizer = make_optimizer(model, spec)
    state = {"model": model, "optimizer": optimizer, "method": method}
    first = load_state(folder, **state) if resume else 0
    seen = []
    stream = method_batches(mixture(spec), spec, rank=rank, world_size=world_size)
    if stop is not None:
        stream = (batch for _, batch in zip(range(stop), stream, strict=False))
    train(model, optimizer, stream, spec, first_step=first, method=method, on_step=seen.append)
    if stop is not None:
        save_state(folder, step=stop, **state)
    held_out = held_out_loss(model, mixture(spec), batch_size=2, device="cpu", loss=loss)
    return [m.known() for m in seen], whole_weights(model), held_out, sums


def worker(rank, world_size, port, base, folder):
    torch.set_num_threads(1)
    make_exact()
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    answers = {}
    ranks = {"rank": rank, "world_size": world_size}
    for case in CASES:
        answers[case] = run(stage(case), base, **ranks)
    own, kept = folder / f"kept-{rank}", folder / "kept"
    own.mkdir()
    run(stage("three_pass"), base, **ranks, folder=own, stop=2)
    shutil.copytree(own, kept, dirs_exist_ok=True)  # Ray Train joins the ranks' folders
    torch.distributed.barrier()
    answers["resumed"] = run(stage("three_pass"), base, **ranks, folder=kept, resume=True)
    torch.distributed.destroy_process_group()
    torch.save(answers, folder / f"{rank}.pt")


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Answers of two ranks to every case, and the folder of the base."""
    folder = tmp_path_factory.mktemp("ranks")
    base = pico.pico_base(folder / "base", seed=0)
    torch.multiprocessing.spawn(worker, args=(2, free_port(), base, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)], base


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_with_sharded_weights_train_what_one_process_trains(exact, two_ranks, case):
    answers, base = two_ranks
    metrics, weights, held_out, _ = run(stage(case), base)
    start = load_file(base / "model.safetensors")
    moved = [name for name in weights if (weights[name] - start[name]).abs().max() > 1e-4]
    assert len(moved) == len(weights), "every weight must train"
    for rank in range(2):
        seen, _, loss_there, _ = answers[rank][case]
        assert loss_there == pytest.approx(held_out, abs=1e-8)
        for got, expected in zip(seen, metrics, strict=True):
            shown = {**expected, "num_tokens": got["num_tokens"]}  # of this rank's rows
            assert got == pytest.approx(shown, rel=1e-6, abs=1e-8)
    for name, expected in weights.items():
        torch.testing.assert_close(answers[0][case][1][name], expected, rtol=0, atol=1e-8)
    assert answers[1][case][1] == {}, "the first rank alone gathers the weights"


@pytest.mark.parametrize("case", CASES)
def test_beside_its_own_gradient_a_sharded_step_sums_scalars_only(two_ranks, case):
    """The loss of plain training; of Booster the norm, without which it is another algorithm."""
    *_, sums = two_ranks[0][0][case]
    assert sums == ([1] if case == "sft" else [1, 4]) * STEPS


def test_a_perturbation_by_each_shards_own_norm_would_be_seen(exact, two_ranks):
    """The joined norm is not a rank's: what the scalar all-reduce is for."""
    answers, _ = two_ranks
    (first, *_), *_ = answers[0]["booster"]
    (other, *_), *_ = answers[1]["booster"]
    assert first["harmful_grad_norm"] == other["harmful_grad_norm"] > 0


def test_a_stopped_sharded_stage_goes_on_to_the_same_weights_bit_for_bit(two_ranks):
    answers, _ = two_ranks
    whole, resumed = answers[0]["three_pass"], answers[0]["resumed"]
    assert [step["step"] for step in resumed[0]] == [3, 4]
    assert resumed[0] == whole[0][2:]
    assert all(resumed[1][name].equal(weight) for name, weight in whole[1].items())


def test_a_stopped_whole_stage_goes_on_to_the_same_weights_bit_for_bit(tiny_base, tmp_path):
    whole = run(stage("three_pass"), tiny_base)
    run(stage("three_pass"), tiny_base, folder=tmp_path, stop=2)
    resumed = run(stage("three_pass"), tiny_base, folder=tmp_path, resume=True)
    assert all(resumed[1][name].equal(weight) for name, weight in whole[1].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_weights_are_written_dense_in_the_bases_types(tmp_path, dtype):
    base = pico.pico_base(tmp_path / "base", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    save_full(whole_weights(model), base, tmp_path / "out", where="toy")
    got, before = (load_file(f / "model.safetensors") for f in (tmp_path / "out", base))
    assert set(got) == set(before)
    for name, tensor in before.items():
        assert torch.equal(got[name], (tensor.float() * 1.1).to(dtype))
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json"} <= files
    assert not {"README.md", "safemerge_recipe.json"} & files
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_base_with_other_names_on_disk_is_refused(tiny_base, tmp_path):
    weights = {"model.strange.weight": torch.zeros(2)}
    with pytest.raises(ConfigError, match=r"toy: parameters: full .* got no 'model\.strange"):
        save_full(weights, tiny_base, tmp_path / "out", where="toy")


def test_half_products_leave_weights_and_gradients_in_float32(tiny_base, rows):
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    loss = stage_loss(stage("packed"))
    narrow = products_in(loss, device="cpu", dtype=torch.bfloat16)
    batch = rows(3, seed=1)
    value = narrow(model, batch)
    wide = float(loss(model, batch).detach())
    assert float(value.detach()) != wide
    assert float(value.detach()) == pytest.approx(wide, rel=0.01)
    torch.autograd.backward(value)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert products_in(loss, device="cpu", dtype=torch.float32) is loss
