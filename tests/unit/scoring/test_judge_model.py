import pytest

from safemerge.config.judge import GuardJudge
from safemerge.errors import CheckpointError
from safemerge.scoring.guard_model import guard_tokenizer
from safemerge.scoring.judge_model import load_judge


def guard(folder):
    return GuardJudge(kind="guard", name="g", path=str(folder), family="llama_guard")


def test_weights_and_tokenizer_come_ready_to_answer(tiny_base):
    tokenizer, model = load_judge(guard(tiny_base), "language model")
    assert tokenizer.chat_template
    assert not model.training


@pytest.mark.parametrize(
    "load", [guard_tokenizer, lambda spec: load_judge(spec, "language model")]
)
def test_a_folder_without_them_is_named(load, tmp_path):
    with pytest.raises(CheckpointError, match=rf"judge 'g': {tmp_path} must hold a .*judge\.path"):
        load(guard(tmp_path))
