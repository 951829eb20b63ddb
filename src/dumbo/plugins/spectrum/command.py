"""`dumbo spectrum MODEL [--top-fraction F] ...`: scans without training."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from dumbo.console import Console
from dumbo.errors import Problem, RunError
from dumbo.local_paths import is_hub_name, near_paths
from dumbo.plugins.spectrum.weights import Weight, units_of


def run(arguments: Sequence[str]) -> int:
    """Print the table; write what was asked for.

    Raises:
        RunError: there is no such model, or it cannot be scanned.
    """
    options = _parser().parse_args(list(arguments))
    if not 0 <= options.top_fraction <= 1:
        raise RunError(f"dumbo spectrum: --top-fraction is a share, from 0 to 1, not {options.top_fraction:g}")
    console = Console()
    weights = _open(options, console)
    from dumbo.plugins.spectrum.scanning import RatioCache, choose, scan
    from dumbo.plugins.spectrum.showing import HEADER, table, write_chart, write_numbers

    units = units_of(weights)
    found = scan(
        units, RatioCache(options.model), console.say, lambda items: console.track(items, "spectrum", len(units))
    )
    chosen = choose(found, options.top_fraction)
    console.table(HEADER, table(found, chosen))
    ends = [weight.name for weight in weights if weight.is_end]
    names = [*ends, *(name for each in chosen for name in each.unit.names)]
    sizes = {weight.name: _size(weight) for weight in weights}
    trained, total = sum(sizes[name] for name in names), sum(sizes.values())
    console.say(
        f"top_fraction {options.top_fraction:g}: {trained:,} of {total:,} parameters ({trained / total:.2%}) would be "
        f"trained, {', '.join(ends) or 'no embeddings'} included"
    )
    if options.json is not None:
        write_numbers(options.json, found, chosen)
    if options.chart is not None:
        write_chart(options.chart, found, chosen, f"signal-to-noise ratio of {options.model}")
    if options.patterns:
        print("model:\n  unfrozen_parameters:")
        print("\n".join(f"    - '^{re.escape(name)}$'" for name in names))
    return 0


def _parser() -> argparse.ArgumentParser:
    from dumbo.cli.flags import Parser

    parser = Parser(prog="dumbo spectrum", description="Measure the signal in a model's weights.")
    parser.add_argument("model", help="a folder or a hub name (owner/name), with safetensors files")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    parser.add_argument("--top-fraction", type=float, default=0.5, metavar="F", help="what would be trained (0.5)")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw a bar for every weight into this PNG file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every weight's ratio into this file")
    parser.add_argument("--patterns", action="store_true", help="print the weights for model.unfrozen_parameters")
    return parser


def _open(options: argparse.Namespace, console: Console) -> list[Weight]:
    from dumbo.left_out_zeros import refuse_left_out
    from dumbo.merging.bases import fetch, stored_tensors

    name, revision = options.model, options.revision
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not is_hub_name(name):
            message = f"dumbo spectrum: there is no folder '{name}', and no model on the hub is called so"
            raise RunError(str(Problem(message, hints=near_paths(folder, folders=True))))
        folder = fetch(name, revision, console.say)
    elif revision is not None:
        raise RunError(f"dumbo spectrum: --revision is for models on the hub, and '{name}' is a folder")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise RunError(f"dumbo spectrum: '{name}' is an adapter; take its base model, or merge it first")
    refuse_left_out(folder, "dumbo spectrum")
    tensors, _ = stored_tensors(folder)
    from dumbo.bridge.quiet import quieten_libraries

    quieten_libraries()
    from dumbo.plugins.spectrum.files import weights_in

    return weights_in(folder, tensors.values(), options.trust_remote_code)


def _size(weight: Weight) -> int:
    size = 1
    for side in weight.shape:
        size *= side
    return size
