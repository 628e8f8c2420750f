from jinja2.sandbox import ImmutableSandboxedEnvironment

from safemerge.config.mergekit import TEMPLATES, is_jinja

TURNS = [{"role": "user", "content": "hi"}]


def test_named_templates_are_the_formats_they_are_named_after():
    wanted = {
        "chatml": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    }
    for name, text in wanted.items():
        template = ImmutableSandboxedEnvironment().from_string(TEMPLATES[name])
        got = template.render(messages=TURNS, add_generation_prompt=True, bos_token="<s>")
        assert got == text


def test_jinja_is_long_and_has_a_brace():
    assert is_jinja("{% for m in messages %}{% endfor %}")
    assert not is_jinja("a-template-of-another-name")
    assert not is_jinja("{x}")
