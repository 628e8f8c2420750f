"""Fingerprints: a checkpoint's identity by content, so that a moved folder is the same."""

import hashlib
import json
from pathlib import Path

from safemerge.cache import read_entry, write_entry
from safemerge.config.base import DIGEST_LENGTH, digest
from safemerge.weights.adapter import ADAPTER_CONFIG, adapter_weights, is_adapter
from safemerge.weights.checkpoint import CONFIG_FILE, existing_folder, read_json, weight_files


def fingerprint(path: Path | str) -> str:
    """Return the fingerprint of a checkpoint's or an adapter's folder.

    SHA-256 over the names and content digests of the weight files, sorted by name, and the
    content of config.json (of adapter_config.json for an adapter). JSON counts by value, not
    by layout. Tokenizer files do not count: they don't change the weights. Digests of weight
    files are cached under ``cache_dir()/fingerprints`` by path, size and modification time,
    so a second call reads no weights.

    Args:
        path: Folder of the checkpoint.

    Returns:
        Sixteen hexadecimal characters.

    Raises:
        CheckpointError: If the folder holds no safetensors checkpoint.
        PreflightError: If the cache cannot be written.
    """
    folder = existing_folder(path)
    if is_adapter(folder):
        config = folder / ADAPTER_CONFIG
        files: tuple[Path, ...] = (adapter_weights(folder),)
    else:
        config = folder / CONFIG_FILE
        files = weight_files(folder)
    document = {
        "config": {config.name: read_json(config)},
        "weights": {file.name: _content_digest(file) for file in files},
    }
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_LENGTH]


def _content_digest(file: Path) -> str:
    resolved = file.resolve()
    status = resolved.stat()
    identity = {
        "path": str(resolved),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }
    key = digest(identity)
    cached = read_entry("fingerprints", key)
    if cached is not None and cached.get("file") == identity:
        return str(cached["sha256"])
    with resolved.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256")
    write_entry("fingerprints", key, {"file": identity, "sha256": content.hexdigest()})
    return content.hexdigest()
