"""Fixtures of several rooms' tests: search studies, problems of declared files, float64 steps."""

import copy

import pytest
from pydantic import BaseModel

from safemerge.config.document import parse_document
from safemerge.errors import ConfigError
from safemerge.search import SearchStudy
from safemerge.store import RunStore


@pytest.fixture
def open_study(tmp_path):
    """Start a search study in a new folder, or go on in the one that an earlier call made."""
    opened = []

    def start(spec, place=None):
        store = RunStore(tmp_path / "run")
        store = RunStore.open(store.folder) if store.exists else store.create(spec)
        opened.append(SearchStudy(spec, store, place=place))
        return opened[-1]

    yield start
    for study in opened:
        study.close()


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


@pytest.fixture
def exact(monkeypatch):
    """Let every step run in float64 where the model or the loss would round to float32."""

    import torch
    from transformers.models.llama import modeling_llama

    def normalized(self, hidden):
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)

    narrow = torch.Tensor.float
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", normalized)
    monkeypatch.setattr(
        torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else narrow(t)
    )
