"""Chat templates that mergekit files name, and how mergekit tells a name from Jinja."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "chatml": (
            "{%- for message in messages -%}"
            "{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' }}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
        ),
        "llama3": (
            "{{- bos_token -}}"
            "{%- for message in messages -%}"
            "{{ '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\n\n' "
            "~ (message['content'] | trim) ~ '<|eot_id|>' }}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}"
            "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
            "{%- endif -%}"
        ),
    }
)
"""Jinja by the name that mergekit has for it; written from the formats' descriptions."""

_SHORTEST = 20


def is_jinja(text: str) -> bool:
    """Tell whether a chat template is written out, by mergekit's measure."""
    return len(text) >= _SHORTEST and "{" in text
