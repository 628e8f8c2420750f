"""``safemerge schema``: the JSON schema of a declared file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from safemerge.config.schema import json_schema

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Print the schema."""
    print(json.dumps(json_schema(options.name), indent=2))
