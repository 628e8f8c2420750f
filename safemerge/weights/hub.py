"""Checkpoints of the Hugging Face hub, in the cache that all its libraries share."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from safemerge.config.checkpoint import CheckpointRef
from safemerge.errors import CheckpointError

DEFAULT_REVISION = "main"

_WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.model.v*",
    "*.tiktoken",
    "*.txt",
    "bpe.codes",
    "*.py",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)
"""Weights as safetensors, config, tokenizer, templates, code and card: what is downloaded."""

_UNWANTED = ("*/*.safetensors", "consolidated*.safetensors", "original/*", "onnx/*")
"""The same weights once more, in other forms."""

_SNAPSHOT = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[^/]+)/?$")


def hub_snapshot(
    repository: str, revision: str | None = None, *, where: str = "model", download: bool = True
) -> Path:
    """Return the folder of a repository's snapshot, downloaded once into the hub's cache.

    ``HF_HOME`` or ``HF_HUB_CACHE`` place the cache, ``HF_TOKEN`` or ``hf auth login`` give the
    token, ``HF_HUB_OFFLINE=1`` forbids the network. Processes of a node wait for one download.

    Args:
        repository: ``ORG/NAME``.
        revision: Branch, tag or commit; None for ``main``.
        where: Place named first in messages, e.g. ``model 'base'``.
        download: Whether to download what the cache lacks.

    Returns:
        The folder, named by the commit, with config and safetensors weights.

    Raises:
        CheckpointError: If it is neither in the cache nor to be had: no network, no such
            repository or revision, no access; or if it has no safetensors weights.
    """
    import huggingface_hub
    from huggingface_hub import errors

    place = f"{where} (hub: {repository}, revision {revision or DEFAULT_REVISION})"
    command = f"hf download {repository} --revision {revision or DEFAULT_REVISION}"
    page = f"https://huggingface.co/{repository}"
    try:
        found = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_UNWANTED),
            local_files_only=not download,
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{place}: is gated and must be open to your token; got no access. Ask for it on "
            f"{page}, then run `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{place}: must be a repository that your token may read; got none at {page}. Check "
            f"the name; for a private one run `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{place}: must be a branch, tag or commit of the repository; got none. See "
            f"{page}/tree/main for its revisions."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{place}: must be in the hub's cache, or the hub within reach; got neither. Run "
            f"`{command}` where there is a network, or set HF_HOME to a cache that has it."
        ) from error
    except Exception as error:
        # NOTE: the hub's HTTP library has errors of its own, which change with its versions.
        got = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{place}: must be had from the hub; got: {got}. Try `{command}`, which continues "
            f"what was begun."
        ) from error
    _check_whole(Path(found), place, command)
    return Path(found)


def on_this_node(path: Path | str) -> Path:
    """Return a checkpoint's folder on this machine.

    A snapshot of the hub that another machine's cache holds is downloaded into this one's.

    Args:
        path: A folder; it need not exist.

    Raises:
        CheckpointError: See `hub_snapshot`.
    """
    folder = Path(path)
    snapshot = _SNAPSHOT.search(folder.as_posix())
    if snapshot is None or folder.is_dir():
        return folder
    repository = f"{snapshot['org']}/{snapshot['name']}"
    return hub_snapshot(repository, snapshot["commit"])


def refs_on_this_node(refs: Sequence[CheckpointRef]) -> dict[str, CheckpointRef]:
    """Return resolved references, those of the hub with their folders on this machine, by name.

    Args:
        refs: References with paths.

    Raises:
        CheckpointError: See `hub_snapshot`.
    """
    return {
        ref.name: ref.model_copy(update={"path": str(on_this_node(ref.path))})
        if ref.hub is not None and ref.path is not None
        else ref
        for ref in refs
    }


def _check_whole(folder: Path, place: str, command: str) -> None:
    index, adapter = folder / "model.safetensors.index.json", folder / "adapter_config.json"
    weights = [folder / ("adapter_model" if adapter.is_file() else "model")]
    weights = [file.with_suffix(".safetensors") for file in weights]
    if index.is_file() and not adapter.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, RecursionError):
            return  # a better message follows once it is opened
        weights = [folder / str(name) for name in sorted(named)]
    lacking = [file.name for file in weights if not file.is_file()]
    if lacking:
        raise CheckpointError(
            f"{place}: must have safetensors weights; got none of {', '.join(lacking[:3])} in "
            f"{folder}. Run `{command}`; if the repository has pickled weights only, take another "
            f"revision or convert it."
        )
