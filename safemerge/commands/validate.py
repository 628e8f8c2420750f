"""``safemerge validate``: every problem of every file at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.config.document import parse_document, read_yaml
from safemerge.config.schema import KINDS, detect_kind
from safemerge.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Check each file against the schema its keys call for."""
    problems = []
    for name in options.files:
        try:
            document = read_yaml(Path(name))
            kind = detect_kind(document, where=name)
            parse_document(document, KINDS[kind], where=name)
        except ConfigError as error:
            problems.append(str(error))
        else:
            print(f"{name}: ok ({kind})")
    if problems:
        raise ConfigError("\n".join(problems))
