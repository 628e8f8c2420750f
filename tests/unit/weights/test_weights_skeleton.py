import shutil

import pytest
import torch
import transformers as tf

from safemerge.errors import CheckpointError
from safemerge.testing.pico import change_config, pico_base
from safemerge.weights import open_checkpoint
from safemerge.weights.skeleton import auto_class, bare_model, conversions

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 4, "image_size": 28, "patch_size": 14}


def make_mixtral():
    return tf.MixtralForCausalLM(tf.MixtralConfig(**HEADS, num_local_experts=4))


def make_gemma3():
    config = tf.Gemma3Config(text_config=HEADS, vision_config=VISION, mm_tokens_per_image=1)
    return tf.Gemma3ForConditionalGeneration(config)


@pytest.fixture(scope="module", params=[make_mixtral, make_gemma3])
def saved(request, tmp_path_factory):
    model = request.param()
    folder = tmp_path_factory.mktemp("skeleton")
    model.save_pretrained(folder)
    return folder, model.state_dict()


def test_a_bare_model_has_names_and_shapes_and_no_memory(saved):
    folder, state = saved
    model = bare_model(folder)
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == {
        name: tuple(t.shape) for name, t in state.items()
    }
    assert all(parameter.is_meta for parameter in model.parameters())


def test_files_become_what_transformers_loads_and_go_back(saved):
    folder, state = saved
    checkpoint = open_checkpoint(folder)
    found = conversions(bare_model(folder), checkpoint.names)
    of_names = [name for entry in found for names in entry.stored for name in names]
    assert sorted(of_names) == list(checkpoint.names)
    for entry in found:
        stored = {name: checkpoint.tensor(name) for names in entry.stored for name in names}
        parameters = entry.to_memory(stored)
        for name, parameter in parameters.items():
            assert torch.equal(parameter, state[name])
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        for name, tensor in entry.to_stored(parameters, shapes).items():
            assert torch.equal(tensor, stored[name])


def test_an_expert_is_converted_alone(tmp_path):
    model = make_mixtral()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    experts = [e for e in conversions(bare_model(tmp_path), checkpoint.names) if e.by_expert]
    assert len(experts) == 2
    for entry in experts:
        (parameter,) = entry.memory
        one = entry.of_expert(2)
        names = [name for group in one.stored for name in group]
        assert all(".experts.2." in name and entry.expert_of(name) == 2 for name in names)
        stored = {name: checkpoint.tensor(name) for name in names}
        converted = one.to_memory(stored)[parameter]
        assert torch.equal(converted[0], model.state_dict()[parameter][2])
        shapes = {name: checkpoint.shape(name) for name in names}
        back = one.to_stored({parameter: converted}, shapes)
        assert all(torch.equal(back[name], stored[name]) for name in names)


def test_what_cannot_be_brought_into_the_files_shape_is_refused(tmp_path):
    make_mixtral().save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    entry = next(e for e in conversions(bare_model(tmp_path), checkpoint.names) if e.by_expert)
    wrong = {name: torch.zeros(4, 5, 6) for name in entry.memory}
    shapes = {name: checkpoint.shape(name) for names in entry.stored for name in names}
    with pytest.raises(CheckpointError, match="converted back to its shape in the file"):
        entry.to_stored(wrong, shapes)


def test_an_unknown_architecture_is_refused(tmp_path):
    change_config(pico_base(tmp_path), model_type="unheard_of", architectures=["UnheardOf"])
    for asked in (bare_model, auto_class):
        with pytest.raises(
            CheckpointError, match=r"that transformers 5\..* knows; got: .*unheard"
        ):
            asked(tmp_path)


def test_a_model_that_continues_no_text_is_refused(tmp_path):
    tf.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="continues text; got model_type 'vit'"):
        auto_class(tmp_path)


def test_vision_language_models_without_a_causal_class_load_whole(tiny_base, tmp_path):
    tf.Qwen2_5_VLConfig().save_pretrained(tmp_path)
    assert auto_class(tmp_path) is tf.AutoModelForImageTextToText
    assert auto_class(tiny_base) is tf.AutoModelForCausalLM


def test_a_value_that_transformers_refuses_is_one_message(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    change_config(folder, pretraining_tp=[None])
    for asked in (bare_model, auto_class):
        with pytest.raises(CheckpointError, match=r"config.json: must describe.*pretraining_tp"):
            asked(folder)
