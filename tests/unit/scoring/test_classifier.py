import pytest
import torch

from safemerge.config.judge import ClassifierJudge, GuardJudge
from safemerge.errors import CheckpointError, ConfigError
from safemerge.scoring.classifier import SequenceClassifierJudge
from safemerge.scoring.guard import GenerativeGuard, GuardAsk
from safemerge.scoring.guard_model import NUM_LIKELIEST, TransformersGuardModel
from safemerge.scoring.judge import Exchange
from safemerge.scoring.local_judge import local_judge
from safemerge.testing.pico import pico_tokenizer

LABELS = ["violence", "theft", "fine"]
EXCHANGES = [
    Exchange("How are you?", "Very well, thank you."),
    Exchange("And now?", "no no no no"),
    Exchange("A longer question, with more words in it?", "A longer answer as well, and more."),
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Folder of a random two-layer Llama classifier with three labels."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("judge") / "classifier"
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, num_labels=3,
        id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


def spec(folder, **fields):
    return ClassifierJudge(kind="classifier", name="c", path=str(folder), **fields)


def probabilities(folder, text, activation):
    """What the model says about one text, straight from transformers."""
    from transformers import LlamaForSequenceClassification

    tokenizer = pico_tokenizer()
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return (torch.sigmoid(logits) if activation == "sigmoid" else logits.softmax(-1)).tolist()


def judged_text(exchange):
    return f"BEGINNING OF CONVERSATION: USER: {exchange.prompt} ASSISTANT:{exchange.response}"


def test_harm_is_the_largest_label_in_beaver_dams_format(classifier):
    found = SequenceClassifierJudge(spec(classifier)).judge(EXCHANGES)
    for exchange, judgement in zip(EXCHANGES, found, strict=True):
        row = probabilities(classifier, judged_text(exchange), "sigmoid")
        assert judgement.harm == pytest.approx(max(row), abs=1e-5)
        assert judgement.categories == tuple(
            label for label, value in zip(LABELS, row, strict=True) if value > 0.5
        )
        assert judgement.refusal is None
    assert [item.coherent for item in found] == [True, False, True]


def test_only_declared_labels_count_and_softmax_adds_them(classifier):
    judge = SequenceClassifierJudge(spec(classifier, activation="softmax", unsafe=LABELS[:2]))
    (found,) = judge.judge(EXCHANGES[:1])
    row = probabilities(classifier, judged_text(EXCHANGES[0]), "softmax")
    assert found.harm == pytest.approx(row[0] + row[1], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batching_does_not_change_a_verdict(classifier, batch_size):
    plain = SequenceClassifierJudge(spec(classifier)).judge(EXCHANGES)
    found = SequenceClassifierJudge(spec(classifier, batch_size=batch_size)).judge(EXCHANGES)
    assert [item.harm for item in found] == pytest.approx([i.harm for i in plain], abs=1e-5)


def test_a_text_that_is_too_long_is_unscored_and_not_cut(classifier):
    limit = 70
    first, _, last = SequenceClassifierJudge(spec(classifier, max_tokens=limit)).judge(EXCHANGES)
    assert first.harm is not None
    assert last.harm is None
    assert last.unscored.startswith("too long for the judge: ")
    assert last.unscored.endswith(f"limit {limit}")


def limited_classifier(kind, folder, positions=64, **settings):
    """Folder of a random one-layer classifier that knows this many positions."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=positions, num_labels=2,
        **{"pad_token_id": 0, **settings},
    )  # fmt: skip
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "limit", "settings"),
    [("Bert", 64, {}), ("Roberta", 63, {}), ("Roberta", 61, {"pad_token_id": 2})],
)
def test_a_text_beyond_the_models_positions_is_unscored_and_the_others_are_judged(
    kind, limit, settings, tmp_path
):
    folder = limited_classifier(kind, tmp_path / kind, **settings)
    judge = SequenceClassifierJudge(spec(folder, format="{response}", append_eos=False))
    texts = ["q" * length for length in (limit, limit + 1, 5)]
    fits, over, short = judge.judge([Exchange("", text) for text in texts])
    assert (over.harm, over.unscored) == (
        None,
        f"too long for the judge: {limit + 1} tokens, limit {limit}",
    )
    assert None not in (fits.harm, short.harm)


def test_a_tokenizers_own_limit_holds_where_it_is_lower(tmp_path):
    folder = limited_classifier("Bert", tmp_path / "bert")
    tokenizer = pico_tokenizer()
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(folder)
    judge = SequenceClassifierJudge(spec(folder, format="{response}", append_eos=False))
    fits, over = judge.judge([Exchange("", "q" * 20), Exchange("", "q" * 21)])
    assert fits.harm is not None
    assert over.unscored.endswith("21 tokens, limit 20")


def test_a_label_that_the_model_does_not_have_is_refused(classifier):
    words = r"judge 'c': unsafe must name labels of the model; got 'arson'\. Labels: violence, "
    with pytest.raises(ConfigError, match=words):
        SequenceClassifierJudge(spec(classifier, unsafe=["arson"]))


def test_one_model_serves_all_who_declare_it_alike(classifier):
    assert local_judge(spec(classifier)) is local_judge(spec(classifier))
    assert local_judge(spec(classifier)) is not local_judge(spec(classifier, threshold=0.4))


# --- a guard model in this process ------------------------------------------------------


def guard_spec(folder, **fields):
    return GuardJudge(kind="guard", name="g", family="llama_guard", path=str(folder), **fields)


def test_a_guard_model_answers_greedily_with_its_likeliest_tokens(tiny_base):
    model = TransformersGuardModel(guard_spec(tiny_base))
    ask = GuardAsk(({"role": "user", "content": "Hello"},), max_reply_tokens=5)
    first, again = model.reply([ask, ask])
    assert first == again
    assert 1 <= len(first.steps) <= 5
    for step in first.steps:
        assert 1 < len(step) <= NUM_LIKELIEST
        assert all(value <= 0 for value in step.values())
    likeliest = [max(step, key=step.get) for step in first.steps]
    assert first.text.startswith(likeliest[0]) or likeliest[0].startswith("<|")


def test_a_question_that_is_too_long_fails_alone(tiny_base):
    model = TransformersGuardModel(guard_spec(tiny_base, max_tokens=60))
    short = GuardAsk(text="Hi", max_reply_tokens=1)
    long = GuardAsk(text="word " * 100, max_reply_tokens=1)
    kept, failed = model.reply([short, long])
    assert kept.failed is None
    assert failed.failed.startswith("too long for the judge: ")


def test_a_guard_that_was_never_trained_is_unscored_not_safe(tiny_base):
    judge = local_judge(guard_spec(tiny_base))
    assert isinstance(judge, GenerativeGuard)
    found = judge.judge(EXCHANGES)
    assert [item.harm for item in found] == [None, None, None]
    assert all("unreadable reply" in item.unscored for item in found)


def test_a_guard_without_a_chat_template_is_refused(tiny_base, tmp_path):
    import shutil

    folder = tmp_path / "guard"
    shutil.copytree(tiny_base, folder)
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = None
    for path in folder.glob("chat_template*"):
        path.unlink()
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        CheckpointError, match="judge 'g': the tokenizer must have a chat template"
    ):
        TransformersGuardModel(guard_spec(folder))
