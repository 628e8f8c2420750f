import json

import pytest
from transformers import AutoTokenizer

from safemerge.errors import CheckpointError
from safemerge.testing import pico
from safemerge.weights.chat_template import put_chat_templates, read_chat_templates


@pytest.fixture
def folder(tmp_path):
    pico.pico_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def configured(folder, value):
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": value}))


def loaded(folder):
    found = AutoTokenizer.from_pretrained(folder).chat_template
    return found if isinstance(found, dict) else {} if found is None else {"default": found}


def test_the_file_of_today_is_read(folder):
    assert read_chat_templates(folder) == {"default": pico.CHAT_TEMPLATE} == loaded(folder)


def test_named_templates_in_files_are_read(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("{{ 2 }}")
    found = read_chat_templates(folder)
    assert found == {"default": pico.CHAT_TEMPLATE, "tool_use": "{{ 2 }}"} == loaded(folder)


def test_a_template_in_the_config_is_read(folder):
    configured(folder, "{{ 3 }}")
    assert read_chat_templates(folder) == {"default": "{{ 3 }}"} == loaded(folder)


def test_named_templates_in_the_config_are_read(folder):
    items = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    configured(folder, items)
    assert read_chat_templates(folder) == {"default": "a", "rag": "b"} == loaded(folder)


def test_a_processors_file_counts_where_there_is_no_other(folder):
    (folder / "chat_template.json").write_text('{"chat_template": "{{ 4 }}"}')
    assert read_chat_templates(folder) == {"default": pico.CHAT_TEMPLATE}
    (folder / "chat_template.jinja").unlink()
    assert read_chat_templates(folder) == {"default": "{{ 4 }}"}


@pytest.mark.parametrize("value", [{"a": 1}, ["x"], 3])
def test_what_is_no_template_is_refused(folder, value):
    configured(folder, value)
    with pytest.raises(CheckpointError, match="must be text, or a list of name and template"):
        read_chat_templates(folder)


@pytest.mark.parametrize("templates", [{}, {"default": "a"}, {"default": "a", "rag": "b"}])
def test_templates_put_into_a_folder_are_the_only_ones(folder, templates):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("{{ 2 }}")
    (folder / "chat_template.json").write_text('{"chat_template": "{{ 4 }}"}')
    put_chat_templates(folder, templates)
    assert read_chat_templates(folder) == templates == loaded(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "old"}))
    put_chat_templates(folder, templates)
    assert read_chat_templates(folder) == templates == loaded(folder)
