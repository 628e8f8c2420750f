"""``safemerge schema``: the JSON schema of a declared file."""

from __future__ import annotations

import argparse
import json

from safemerge.config.schema import json_schema


def run(options: argparse.Namespace) -> None:
    """Print the schema."""
    print(json.dumps(json_schema(options.name), indent=2))
