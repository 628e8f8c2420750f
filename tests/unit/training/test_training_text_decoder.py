import pytest
import torch
import transformers as tf

from safemerge.config.stage import LoraSpec
from safemerge.engines.chat import ChatFormat
from safemerge.errors import ConfigError
from safemerge.testing.pico import pico_tokenizer
from safemerge.training.batch import IGNORED, TokenBatch
from safemerge.training.full import save_full, whole_weights
from safemerge.training.lora import attach_lora, bare_model, check_targets, save_trained
from safemerge.training.sft import target_loss
from safemerge.training.text_decoder import text_decoder
from safemerge.weights import open_checkpoint

SIZES = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TEXT = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2}
TEXT |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPEC = LoraSpec(rank=2, targets=["q_proj", "v_proj"])


def make_gemma3():
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    text = {**TEXT, "head_dim": 8}
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    return tf.Gemma3ForConditionalGeneration(config)


def make_qwen25_vl():
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64}
    vision |= {"out_hidden_size": 32, "patch_size": 4}
    rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    config = tf.Qwen2_5_VLConfig(text_config={**TEXT, **rope}, vision_config=vision)
    return tf.Qwen2_5_VLForConditionalGeneration(config)


@pytest.fixture(scope="module", params=[make_gemma3, make_qwen25_vl])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    request.param().save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(base):
    return tf.AutoModelForImageTextToText.from_pretrained(base).eval()


def test_text_passes_the_decoder_as_it_passes_the_whole_model(base, model):
    ids = torch.tensor([ChatFormat(base).prompt_ids("One two three")])
    with torch.no_grad():
        hidden = text_decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
        logits = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(model.get_output_embeddings()(hidden), logits)


def test_adapters_are_put_into_the_text_decoder_alone(base, tmp_path):
    model = tf.AutoModelForImageTextToText.from_pretrained(base)
    wrapped = attach_lora(model, SPEC, where="stage")
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert all("language_model" in name for name in trained)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    save_trained(wrapped, base, tmp_path / "out", output="dense")
    merged = wrapped.merge_and_unload().eval()
    loaded = tf.AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(input_ids=ids).logits, merged(input_ids=ids).logits, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("num_shared", [0, 4])
def test_the_loss_of_text_is_the_whole_models(base, model, num_shared):
    ids = torch.arange(3, 27).reshape(2, 12)
    ids[1, :4] = ids[0, :4]
    labels = torch.where(torch.arange(12) < 8, IGNORED, ids)
    batch = TokenBatch(ids, torch.ones_like(ids), labels, num_shared)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        torch.testing.assert_close(target_loss(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_the_first_layer_counts_in_the_text_decoder(base):
    model = tf.AutoModelForImageTextToText.from_pretrained(base)
    spec = SPEC.model_copy(update={"first_layer": 1})
    wrapped = attach_lora(model, spec, where="stage")
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2
    assert all(".layers.1." in name for name in trained)


def test_a_target_of_the_vision_tower_is_refused(base):
    spec = SPEC.model_copy(update={"targets": ["qkv", "fc1"]})
    with pytest.raises(ConfigError, match="must name modules of the model; got 'qkv'"):
        check_targets(bare_model(base), spec, where="stage")


def test_all_weights_are_written_under_the_names_of_the_base(base, model, tmp_path):
    weights = {name: weight + 0.5 for name, weight in whole_weights(model).items()}
    save_full(weights, base, tmp_path / "out", where="stage")
    before, after = open_checkpoint(base), open_checkpoint(tmp_path / "out")
    assert after.names == before.names
    for name in before.names:
        torch.testing.assert_close(after.tensor(name), before.tensor(name) + 0.5)
