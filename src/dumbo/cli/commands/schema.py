"""`dumbo schema [CONFIG]`: the JSON Schema that editors complete from."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "config", type=Path, nargs="?", help="for the plugins of this file; by default all installed ones"
    )


def run(options: argparse.Namespace) -> int:
    """Print the schema."""
    import json

    from dumbo.cli.composed import composed_model
    from dumbo.config.json_schema import json_schema

    print(json.dumps(json_schema(composed_model(options.config)), indent=2))
    return 0
