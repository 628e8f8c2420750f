"""Fingerprints: a checkpoint's identity by content, so that a moved folder is the same."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safemerge.config.base import DIGEST_LENGTH
from safemerge.weights.adapter import ADAPTER_CONFIG, adapter_weights, is_adapter
from safemerge.weights.checkpoint import CONFIG_FILE, existing_folder, read_json, weight_files
from safemerge.weights.watched_file import content_digest

_READERS = 8
"""Files digested at a time: a core digests 1 to 2 GB/s, and disks give more."""


def fingerprint(path: Path | str) -> str:
    """Return the fingerprint of a checkpoint's or an adapter's folder.

    SHA-256 over the names and content digests of the weight files, sorted by name, and the
    content of config.json (of adapter_config.json for an adapter). JSON counts by value, not
    by layout. Tokenizer files do not count: they don't change the weights. Digests of weight
    files are cached, see `content_digest`, so a second call on a node reads no weights unless
    they changed.

    Args:
        path: Folder of the checkpoint.

    Returns:
        Sixteen hexadecimal characters.

    Raises:
        CheckpointError: If the folder holds no safetensors checkpoint, or it cannot be read.
        PreflightError: If the cache cannot be written.
    """
    folder = existing_folder(path)
    if is_adapter(folder):
        config = folder / ADAPTER_CONFIG
        files: tuple[Path, ...] = (adapter_weights(folder),)
    else:
        config = folder / CONFIG_FILE
        files = weight_files(folder)
    with ThreadPoolExecutor(max_workers=_READERS) as readers:
        digests = list(readers.map(content_digest, files))
    document = {
        "config": {config.name: read_json(config)},
        "weights": {file.name: found for file, found in zip(files, digests, strict=True)},
    }
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_LENGTH]
