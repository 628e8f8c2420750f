import pytest
import torch
from transformers import AutoModelForCausalLM

from safemerge.config.alignment import UntilSpec
from safemerge.config.stage import LoraSpec
from safemerge.engines.chat import ChatFormat
from safemerge.testing.pico import END_OF_TURN, pico_saying
from safemerge.training.lora import attach_lora
from safemerge.training.until import RefusalGate

PROMPTS = {"source": {"kind": "file", "path": "/data/held-out.jsonl"}}


@pytest.fixture
def gate(tmp_path):
    """Return a gate on a model that says one text, and what it is asked."""

    def gate(text, *, adapted=False, **fields):
        base = pico_saying(tmp_path / "says", text, end=END_OF_TURN)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapted:
            model = attach_lora(model, LoraSpec(targets=["q_proj"]), where="toy")
        chat = ChatFormat(base)
        prompts = [chat.prompt_ids(f"question {index}" * index) for index in range(1, 4)]
        spec = UntilSpec.model_validate({"refusal": 0.9, "prompts": [PROMPTS], **fields})
        return RefusalGate(spec, model.train(), prompts, chat=chat, base=base), model

    return gate


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(("text", "share"), [("Sorry", 1.0), ("Fine", 0.0)])
def test_the_share_of_refusals_is_that_of_greedy_answers(gate, text, share, adapted):
    asked, model = gate(text, adapted=adapted)
    assert asked.refusal(20) == share
    assert asked.is_passed(20) is (share >= 0.9)
    assert asked.at(20) == {"refusal": share}
    assert asked.at(19) == {}
    assert model.training


def test_it_is_measured_from_the_least_number_of_steps_on_every_so_often(gate):
    asked, _ = gate("Sorry", every=5, min_steps=11)
    assert [step for step in range(30) if asked.is_passed(step)] == [15, 20, 25]
    assert [step for step in range(30) if asked.at(step)] == [15, 20, 25]
    first, _ = gate("Sorry", every=5)
    assert not first.is_passed(0), "a stage takes a step"
