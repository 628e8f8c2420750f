"""A judge's weights and tokenizer are loaded, or refused in one line."""

import pytest

from safemerge.config.judge import ClassifierJudge, GuardJudge
from safemerge.errors import CheckpointError
from safemerge.scoring.guard_model import guard_tokenizer
from safemerge.scoring.judge_model import load_judge


def guard(path):
    return GuardJudge(kind="guard", name="c", family="llama_guard", path=str(path))


def test_weights_and_tokenizer_come_ready_to_answer(tiny_base):
    tokenizer, model = load_judge(guard(tiny_base), "language model")
    assert tokenizer.chat_template
    assert not model.training


@pytest.mark.parametrize("kind", ["sequence classifier", "language model"])
def test_a_folder_without_a_judge_is_refused_in_one_line(tmp_path, kind):
    spec = guard(tmp_path / "none")
    if kind == "sequence classifier":
        spec = ClassifierJudge(kind="classifier", name="c", path=str(tmp_path / "none"))
    words = rf"judge 'c': .* must hold a {kind} and its tokenizer; got: "
    with pytest.raises(CheckpointError, match=words) as raised:
        load_judge(spec, kind)
    assert len(str(raised.value).splitlines()) == 1


def test_a_folder_without_a_guards_tokenizer_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=rf"judge 'c': {tmp_path} must hold a .*judge\.path"):
        guard_tokenizer(guard(tmp_path))
