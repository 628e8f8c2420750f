"""Real vLLM: an answer ends where the transformers engine ends it."""

import json

import pytest

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.models import models_recipe
from safemerge.config.study import EvaluatorSpec
from safemerge.config.tokenizer import TokenizerChoice
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import TokenizedPrompt
from safemerge.engines.launch import start_engine
from safemerge.merge.candidate_tokenizer import candidate_tokenizer
from safemerge.testing.pico import END_OF_TEXT, END_OF_TURN, PAD, pico_permuted, pico_saying
from safemerge.weights.vocabulary import vocabulary
from tests.integration.driving import VLLM_MARKS

pytest.importorskip("vllm")
pytestmark = VLLM_MARKS


def change(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_vllm_stops_at_every_end_that_base_or_experts_name(tmp_path):
    named = {"turn": END_OF_TURN, "text": END_OF_TEXT, "other": PAD}
    folders = {n: pico_saying(tmp_path / n, "42", end=end) for n, end in named.items()}
    change(folders["turn"] / "tokenizer_config.json", eos_token=END_OF_TEXT)
    change(folders["other"] / "generation_config.json", eos_token_id=[2, 0])
    base, *experts = [CheckpointRef(name=n, path=str(f)) for n, f in folders.items()]
    models = models_recipe(base, experts)
    spec = EvaluatorSpec(max_model_len=256, max_num_seqs=4, kv_cache_gib=0.1, dtype="float32")
    ids = tuple(ChatFormat(folders["turn"]).prompt_ids("What is 6 times 7?"))
    engine = start_engine(models, spec, cpu_ids="0", in_process=True)
    found = {}
    try:
        for name in named:
            method = models.method.model_copy(update={"weights": {name: 1.0}})
            engine.load(models.model_copy(update={"method": method}))
            asked = [TokenizedPrompt("whole", ids, 12), TokenizedPrompt("cut", ids, 2)]
            found[name] = [(r.text, r.finished, r.num_tokens) for r in engine.generate(asked)]
    finally:
        engine.close()
    assert found == {name: [("42", True, 3), ("42", False, 2)] for name in named}


@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_with_an_experts_vocabulary_ends_are_by_its_ids(tmp_path, kind):
    folders = {n: pico_saying(tmp_path / n, "42", end=END_OF_TEXT) for n in ("base", "plain")}
    folders["expert"] = pico_permuted(folders.pop("plain"), tmp_path / "expert", seed=3)
    # What ends an answer of the base has, in the expert's order, the id of an ordinary token.
    ids = vocabulary(folders["expert"])
    own_end = vocabulary(folders["base"])[END_OF_TEXT]
    change(folders["base"] / "generation_config.json", eos_token_id=[own_end, ids["2"]])
    base, expert = [CheckpointRef(name=n, path=str(f)) for n, f in folders.items()]
    choice = TokenizerChoice.model_validate({"from": "expert"})
    models = models_recipe(base, [expert], vocabulary="tokenizer", tokenizer=choice)
    chat = ChatFormat(candidate_tokenizer(models))
    asked = [TokenizedPrompt("a", tuple(chat.prompt_ids("What is 6 times 7?")), 12)]
    spec = EvaluatorSpec(
        max_model_len=256, max_num_seqs=4, kv_cache_gib=0.1, dtype="float32", engine=kind
    )
    engine = start_engine(models, spec, cpu_ids="0", in_process=True)
    found = []
    try:
        for weights in ({"base": 1.0}, {"expert": 1.0}, {"base": 0.5, "expert": 0.5}):
            method = models.method.model_copy(update={"weights": weights})
            engine.load(models.model_copy(update={"method": method}))
            found += [(r.text, r.finished, r.num_tokens) for r in engine.generate(asked)]
    finally:
        engine.close()
    assert found == [("42", True, 3)] * 3
