"""What `generate` and `chat` share: their flags, how they open a model, and how they stream an answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dumbo.errors import DumboError
    from dumbo.inference.generate import Reply, Sampling
    from dumbo.inference.opening import Opened


def add_generation_arguments(parser: argparse.ArgumentParser, temperature: float) -> None:
    """The flags of both verbs."""
    parser.add_argument("--system", metavar="TEXT", help="a system message before the first one")
    parser.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="longest answer (256)")
    parser.add_argument(
        "--temperature",
        type=_not_negative,
        default=temperature,
        metavar="T",
        help=f"0 takes the likeliest token, more draws more freely ({temperature:g})",
    )
    parser.add_argument("--top-p", type=_share, default=1.0, metavar="P", help="draw from the likeliest share P only")
    parser.add_argument("--top-k", type=_whole, default=0, metavar="K", help="draw from the K likeliest tokens only")
    parser.add_argument(
        "--steps", type=_positive, default=None, metavar="N", help="of a diffusion model: forward passes"
    )
    parser.add_argument(
        "--block-length", type=_positive, default=None, metavar="N", help="of a diffusion model: tokens written at once"
    )
    parser.add_argument("--seed", type=_whole, default=None, help="seed of what is drawn")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    parser.add_argument(
        "--allow-pickle", action="append", default=[], metavar="FILE", help="weight file that may be a pickle"
    )
    parser.add_argument(
        "--unquantized", action="store_true", help="load the base model of an adapter as it is, not as in training"
    )
    parser.add_argument("--raw", action="store_true", help="give the model the text as it is, without its format")


def sampling_of(options: argparse.Namespace) -> Sampling:
    """How tokens are chosen.

    Raises:
        DumboError: flags of drawing tokens, where the likeliest one is taken.
    """
    from dumbo.inference.generate import Sampling

    if options.temperature == 0:
        flags = {"--top-p": options.top_p != 1.0, "--top-k": options.top_k != 0}
        for flag in (flag for flag, written in flags.items() if written):
            raise _useless(flag)
    return Sampling(
        options.temperature,
        options.top_p,
        options.top_k,
        steps=options.steps,
        block_length=options.block_length,
    )


def check_seed(opened: Opened, options: argparse.Namespace, texts: Sequence[str | None]) -> None:
    """Make sure that a seed has an effect on the answers to `texts`; None for one that is not known yet.

    Raises:
        DumboError: nothing is drawn: neither the tokens, nor what a text asks for (`:mask` draws places).
    """
    is_drawn = options.temperature > 0 or any(opened.generator.draws(text) for text in texts)
    if options.seed is not None and not is_drawn:
        raise _useless("--seed")


def _useless(flag: str) -> DumboError:
    from dumbo.errors import DumboError

    message = f"{flag} has no effect: at temperature 0 the likeliest token is taken"
    return DumboError(f"{message}\n    write --temperature 0.7 too")


def check_sampling(opened: Opened, sampling: Sampling) -> None:
    """Make sure that everything that was asked for has an effect.

    Raises:
        DumboError: the model does not write in such a way.
    """
    from dumbo.errors import DumboError

    for name in sorted(opened.generator.ignores):
        if getattr(sampling, name) != type(sampling).__dataclass_fields__[name].default:
            raise DumboError(f"--{name.replace('_', '-')} has no effect: this model writes {opened.generator.way}")


def open_for(options: argparse.Namespace) -> Opened:
    """Load the model, and say on the error stream what was loaded: standard output is for answers.

    Raises:
        DumboError: there is none, or it takes no system message and there is one.
    """
    from dumbo.inference.opening import open_model

    if options.system and options.raw:
        from dumbo.errors import DumboError

        raise DumboError("--system has no effect: with --raw there are no messages")
    if options.trust_remote_code:
        warning = "warning: --trust-remote-code: Python code that comes with the model may run, with all your rights"
        print(warning, file=sys.stderr, flush=True)
    allowed = tuple(options.allow_pickle)
    opened = open_model(
        options.run,
        raw=options.raw,
        trust_remote_code=options.trust_remote_code,
        allow_pickle=allowed,
        unquantized=options.unquantized,
    )
    check_sampling(opened, sampling_of(options))
    if options.system:
        check_system(opened, options.system)
    if options.seed is not None:
        import torch

        torch.manual_seed(options.seed)
    device = next(opened.generator.model.parameters()).device
    print(f"{opened.folder} on {device}, prompts by {opened.format}", file=sys.stderr, flush=True)
    return opened


def check_system(opened: Opened, text: str) -> None:
    """Make sure that a system message reaches the model.

    Raises:
        DumboError: its format refuses one, or leaves it out.
    """
    from dumbo.errors import DumboError

    try:
        is_read = opened.generator.reads_system(text)
    except DumboError as error:
        raise DumboError(f"{opened.format} takes no system message: {str(error).splitlines()[0]}") from error
    if not is_read:
        raise DumboError(f"a system message has no effect: {opened.format} leaves it out of the prompt")


def stream_answer(
    opened: Opened,
    messages: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
    write: Callable[[str], None],
) -> Reply:
    """Write the answer to `messages` while it comes, and return it."""
    from dumbo.bridge.streaming import WordStreamer

    generator = opened.generator
    begun = generator.is_literal(messages[-1]["content"])

    def write_trimmed(text: str) -> None:
        """Without the space that many formats have before an answer, where it says nothing."""
        nonlocal begun
        text = text if begun else text.lstrip()
        begun = begun or bool(text)
        write(text)

    streamer = WordStreamer(generator.tokenizer, write_trimmed)
    reply = generator.reply(messages, options.max_new_tokens, sampling_of(options), streamer)
    if reply.note:
        print(reply.note, file=sys.stderr, flush=True)
    for text, is_right in reply.pieces:
        write_piece(text, is_right)
    return reply


def write_piece(text: str, is_right: bool | None) -> None:
    """To standard output; on a terminal what is right is green, what is wrong red, and what was given dim."""
    if not sys.stdout.isatty():
        to_stdout(text)
        return
    code = {True: "32", False: "31", None: "2"}[is_right]
    sys.stdout.write(f"\x1b[{code}m")
    to_stdout(text)
    sys.stdout.write("\x1b[0m")
    sys.stdout.flush()


def to_stdout(text: str) -> None:
    """Write a piece of an answer at once; on a terminal its control characters, which could drive it, are signs."""
    from dumbo.visible import made_visible

    sys.stdout.write(made_visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def run_argument(parser: argparse.ArgumentParser) -> None:
    """The first word of both verbs."""
    parser.add_argument("run", type=Path, help="a run's folder, a checkpoint of it, or any folder with a model")


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number")
    return int(text)


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


def _share(text: str) -> float:
    number = _not_negative(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return number
