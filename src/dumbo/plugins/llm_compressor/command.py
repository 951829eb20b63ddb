"""`dumbo decompress MODEL OUTPUT`: writes a model with the zeros that were left out of its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dumbo.cli.flags import Parser
from dumbo.console import Console
from dumbo.disk import warn_of_little_space
from dumbo.errors import Problem, RunError
from dumbo.inference.opening import find_model
from dumbo.left_out_zeros import leaves_zeros_out
from dumbo.memory import size


def run(arguments: Sequence[str]) -> int:
    """Write the model, and say how large it is.

    Raises:
        RunError: there is no such model, it has its zeros, it is damaged, or the output is there already.
    """
    parser = Parser(prog="dumbo decompress", description="Write a model with the zeros left out of it.")
    parser.add_argument("model", type=Path, help="a run's folder, or any folder with a model (save_compressed: true)")
    parser.add_argument("output", type=Path, help="the new folder")
    words = parser.parse_args(list(arguments))
    folder = find_model(words.model)
    if not leaves_zeros_out(folder):
        raise RunError(f"there is nothing to decompress: '{folder}' has its zeros")
    output: Path = words.output
    if output.exists() or output.is_symlink():
        raise _error(f"'{output}' exists already, and nothing is overwritten", "remove it, or name another folder")
    if folder.resolve() in output.resolve().parents:
        raise _error(f"'{output}' would lie in the model's own folder", "name a folder outside of it")
    from dumbo.bridge.quiet import quieten_libraries
    from dumbo.plugins.llm_compressor.saving import put_zeros_in

    quieten_libraries()
    console = Console()
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    warn_of_little_space(output.parent, 2 * stored, console.say)
    written = put_zeros_in(folder, output)
    console.say(
        f"{output}: {size(written.after)} of weights, which are {size(written.before)} without zeros in {folder}"
    )
    return 0


def _error(message: str, hint: str) -> RunError:
    return RunError(str(Problem(message, hints=(hint,))))
