"""`dumbo docs [TOPIC]`: the documentation that comes with the package, readable offline."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("topic", nargs="?", help="a topic, or the name of a plugin")


def run(options: argparse.Namespace) -> int:
    """Print a topic, or the list of topics."""
    from dumbo.cli.topics import first_line, read_topic, topics

    if options.topic:
        print(read_topic(options.topic))
        return 0
    known = topics()
    width = max(len(name) for name in known)
    for name, file in known.items():
        print(f"  {name.ljust(width)}  {first_line(file)}")
    print(f"  {'options'.ljust(width)}  Every key of the configuration, from the installed plugins")
    print("\n'dumbo docs TOPIC' prints one.")
    return 0
