import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from safemerge.reports.markup import (
    Cell,
    Section,
    breakable,
    code,
    definitions,
    fill,
    items,
    joined_markup,
    page,
    paragraph,
    table,
)

TEXT = "<i>a</i> & 'b'"


@pytest.mark.parametrize(
    "made",
    [
        fill("<b>{{ text }}</b>", text=TEXT),
        breakable(TEXT),
        code(TEXT),
        definitions([(TEXT, TEXT)]),
        items([TEXT]),
        joined_markup([TEXT]),
        paragraph(TEXT, css=TEXT),
        table(TEXT, [TEXT], [[Cell(TEXT, TEXT)]], row_ids=[TEXT], details=[TEXT]),
        page(TEXT, "report", Markup(), [Section(TEXT, TEXT, TEXT, paragraph(TEXT))]),
    ],
)
def test_whatever_is_not_markup_is_escaped(made):
    assert "<i>" not in made
    assert "&lt;i&gt;a&lt;/i&gt; &amp; " in made


def test_markup_stays_as_it_is():
    assert paragraph(fill("{{ a }}<br>{{ b }}", a=code("x"), b="<")) == (
        "<p><code>x</code><br>&lt;</p>"
    )
    assert "{{ name }}" in fill("{{ text }}", text="{{ name }}"), "a slot in a name stays"


def test_a_slot_without_a_value_is_an_error():
    with pytest.raises(UndefinedError):
        fill("{{ missing }}")
