"""What the tests of all kinds of files share."""

import copy

import pytest
from pydantic import BaseModel

from safemerge.config.document import parse_document
from safemerge.errors import ConfigError


@pytest.fixture
def problems():
    """Return the lines that refuse a document."""

    def problems(document, model):
        with pytest.raises(ConfigError) as caught:
            parse_document(document, model, where="f.yaml")
        return str(caught.value).splitlines()

    return problems


@pytest.fixture
def set_in():
    """Return a copy of a document with one value set, by ``/``-separated path."""

    def set_in(document, path, value):
        document = copy.deepcopy(document)
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        here = document
        for part in parents:
            # A section left at its default is not written out.
            here = here.setdefault(part, {}) if isinstance(here, dict) else here[part]
        here[last] = value
        return document

    return set_in


@pytest.fixture
def places():
    """Return the path of every model inside a model, itself included."""

    def places(value, path=()):
        if isinstance(value, BaseModel):
            yield "/".join(path)
            for name, field in type(value).model_fields.items():
                yield from places(getattr(value, name), (*path, field.alias or name))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from places(item, (*path, str(index)))
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from places(item, (*path, key))

    return places
