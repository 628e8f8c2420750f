import os
import shutil
import subprocess
import sys

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from safemerge.config.checkpoint import CheckpointRef
from safemerge.errors import CheckpointError
from safemerge.weights import open_checkpoint
from safemerge.weights.fingerprint import fingerprint
from safemerge.weights.hub import hub_snapshot, on_this_node, refs_on_this_node

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, without a network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def put(cache):
    """Put a checkpoint into the cache, as a download leaves it."""

    def put(repository, source, commit=COMMIT, *, ref="main"):
        stored = cache / f"models--{repository.replace('/', '--')}"
        snapshot = shutil.copytree(source, stored / "snapshots" / commit)
        (stored / "refs").mkdir(exist_ok=True)
        (stored / "refs" / ref).write_text(commit)
        return snapshot

    return put


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
@pytest.mark.parametrize("download", [True, False])
def test_a_repository_in_the_cache_is_its_snapshot(put, tiny_base, revision, download):
    snapshot = put("org/base", tiny_base)
    assert hub_snapshot("org/base", revision, download=download) == snapshot
    assert snapshot.name == COMMIT


def test_a_tag_is_the_commit_that_it_names(put, tiny_base, tiny_expert):
    put("org/base", tiny_base)
    other = put("org/base", tiny_expert, "f" * 40, ref="v2")
    assert hub_snapshot("org/base", "v2") == other


@pytest.mark.parametrize(("repository", "revision"), [("org/none", None), ("org/base", "v9")])
def test_what_is_not_there_offline_is_told_with_the_command_that_downloads_it(
    put, tiny_base, repository, revision
):
    put("org/base", tiny_base)
    asked = revision or "main"
    with pytest.raises(CheckpointError) as caught:
        hub_snapshot(repository, revision, where="model 'base'")
    assert str(caught.value) == (
        f"model 'base' (hub: {repository}, revision {asked}): must be in the hub's cache, or the "
        f"hub within reach; got neither. Run `hf download {repository} --revision {asked}` where "
        f"there is a network, or set HF_HOME to a cache that has it."
    )


def test_an_unfinished_download_is_told(put, tiny_base):
    (put("org/base", tiny_base) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"got none of model.safetensors in .*hf download"):
        hub_snapshot("org/base")


def test_missing_shards_are_told(put, tiny_base):
    snapshot = put("org/base", tiny_base)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    )
    (snapshot / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"got none of model-2\.safetensors in"):
        hub_snapshot("org/base")


def test_an_adapter_is_a_checkpoint_too(put, tiny_adapter):
    snapshot = put("org/lora", tiny_adapter)
    assert hub_snapshot("org/lora") == snapshot
    (snapshot / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"got none of adapter_model\.safetensors"):
        hub_snapshot("org/lora")


def response(status):
    request = httpx2.Request("GET", "https://huggingface.co/api/models/org/base")
    return httpx2.Response(status, request=request)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError("no", response=response(403)), "is gated .*hf auth login. or set"),
        (errors.RepositoryNotFoundError("no", response=response(401)), "that your token may read"),
        (errors.RevisionNotFoundError("no", response=response(404)), "a branch, tag or commit"),
        (errors.HfHubHTTPError("503 busy", response=response(503)), "got: 503 busy. Try .hf down"),
        (httpx2.ProxyError("no proxy"), "must be had from the hub; got: no proxy"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_each_refusal_of_the_hub_is_one_message(monkeypatch, error, words):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=words) as caught:
        hub_snapshot("org/base")
    assert "\n" not in str(caught.value)


def test_only_what_a_merge_reads_is_downloaded(monkeypatch, tiny_base):
    from huggingface_hub.utils import filter_repo_objects

    asked = {}

    def download(repository, **settings):
        asked.update(settings)
        return str(tiny_base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub_snapshot("org/base", "v1")
    wanted = [
        "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "adapter_model.safetensors", "tokenizer.json", "tokenizer.model", "tekken.json",
        "merges.txt", "chat_template.jinja", "additional_chat_templates/rag.jinja",
        "modeling_own.py", "LICENSE", "README.md",
    ]  # fmt: skip
    unwanted = [
        "pytorch_model.bin", "original/consolidated.00.pth", "original/tokenizer.model",
        "consolidated.safetensors", "onnx/model.onnx", "model.gguf",
        "vae/model.safetensors",
    ]  # fmt: skip
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*wanted, *unwanted], **patterns)) == wanted
    assert asked["revision"] == "v1"


def test_another_machines_snapshot_is_taken_from_this_ones_cache(put, tiny_base, tmp_path):
    snapshot = put("org/base", tiny_base)
    elsewhere = f"/home/other/.cache/hub/models--org--base/snapshots/{COMMIT}"
    assert on_this_node(elsewhere) == snapshot
    assert on_this_node(snapshot) == snapshot
    assert on_this_node(tmp_path / "none") == tmp_path / "none"
    assert open_checkpoint(elsewhere).folder == snapshot
    assert fingerprint(elsewhere) == fingerprint(tiny_base)
    refs = [
        CheckpointRef(
            name="base", hub="org/base", path=elsewhere, revision=COMMIT, digest="0" * 16
        ),
        CheckpointRef(name="own", path="/models/own"),
    ]
    found = refs_on_this_node(refs)
    assert found["base"].path == str(snapshot)
    assert found["own"] == refs[1]


def test_a_path_that_looks_like_a_repository_suggests_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"write 'hub: meta-llama/Llama-3.1-8B'\.$"):
        open_checkpoint(tmp_path / "meta-llama/Llama-3.1-8B")
    (tmp_path / "models").mkdir()
    with pytest.raises(CheckpointError, match=r"got nothing there. Check the path\.$"):
        open_checkpoint(tmp_path / "models/mine")


def test_reading_a_file_with_hub_ids_imports_no_hub_library(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "base: {name: base, hub: org/base}\n"
        "experts: [{name: math, hub: org/math, revision: v1}]\n"
        "method: {name: linear, weights: {math: 1.0}}\n"
    )
    code = (
        "import sys; from safemerge.cli import main; "
        f"assert main(['validate', {str(file)!r}]) == 0; "
        "assert 'huggingface_hub' not in sys.modules"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
