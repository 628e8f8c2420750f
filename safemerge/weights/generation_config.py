"""Where a checkpoint's configs say that an answer ends."""

from pathlib import Path

from safemerge.errors import CheckpointError
from safemerge.weights.checkpoint import CONFIG_FILE, read_json

GENERATION_FILE = "generation_config.json"


def named_ends(folder: Path) -> list[int]:
    """Return the ends that a checkpoint's configs name, in its own ids; none for an adapter.

    Raises:
        CheckpointError: If an end is not a token's id, or a config cannot be read.
    """
    for name in (GENERATION_FILE, CONFIG_FILE):
        path = folder / name
        if not path.is_file():
            continue
        config = read_json(path)
        given = config.get("eos_token_id")
        if given is None and isinstance(config.get("text_config"), dict):
            given = config["text_config"].get("eos_token_id")
        if given is None:
            continue
        ends = given if isinstance(given, list) else [given]
        wrong = [one for one in ends if isinstance(one, bool) or not isinstance(one, int)]
        if wrong:
            raise CheckpointError(
                f"{path}: eos_token_id must be a token's id or a list of such; got {given!r}. "
                "Correct the file."
            )
        return ends
    return []
