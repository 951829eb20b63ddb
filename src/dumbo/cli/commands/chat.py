"""`dumbo chat RUN`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from dumbo.cli.generation import add_generation_arguments, run_argument

if TYPE_CHECKING:
    from dumbo.inference.opening import Opened

HELP = "/new forgets the conversation, /system TEXT sets the system message, /quit or Ctrl-D ends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    run_argument(parser)
    add_generation_arguments(parser, temperature=0.7)


def run(options: argparse.Namespace) -> int:
    """Talk until the user ends it."""
    from dumbo.cli.generation import check_seed, open_for, sampling_of

    sampling_of(options)
    opened = open_for(options)
    check_seed(opened, options, [None])
    if sys.stdin.isatty():
        import readline  # noqa: F401 (gives `input` a history and the arrow keys)
    conversation = _Conversation(opened, options)
    print(HELP)
    return conversation.talk()


class _Conversation:
    def __init__(self, opened: Opened, options: argparse.Namespace) -> None:
        self._opened, self._options = opened, options
        self._begin(options.system or None)

    def _begin(self, system: str | None) -> None:
        """A conversation with this system message, which may decide what else the format takes."""
        self._system = system
        self._turns: list[dict[str, Any]] = []
        self._keeps_turns = self._opened.generator.keeps_turns(system)
        if not self._keeps_turns:
            print("this model's format knows one question and one answer: every message stands for itself")

    def talk(self) -> int:
        """Read, answer, and so on."""
        from dumbo.errors import DumboError
        from dumbo.redact import redact_text
        from dumbo.visible import made_visible

        while True:
            try:
                line = input("\nyou> ")
            except EOFError:
                print()
                return 0
            text = line if self._opened.generator.is_literal(line) else line.strip()
            if text in ("/quit", "/exit"):
                return 0
            try:
                if text.startswith("/"):
                    self._obey(text)
                elif text:
                    self._answer(text)
            except DumboError as error:
                print(f"{made_visible(redact_text(str(error)))}\n    /new starts another conversation")
            except KeyboardInterrupt:
                print("  (stopped)")

    def _obey(self, command: str) -> None:
        word, _, rest = command.partition(" ")
        if word == "/new":
            self._turns = []
            print("(a new conversation)")
        elif word == "/system":
            self._set_system(rest.strip() or None)
        else:
            print(HELP)

    def _set_system(self, text: str | None) -> None:
        from dumbo.cli.generation import check_system

        if text is not None:
            check_system(self._opened, text)
        self._begin(text)
        print("(a new conversation with this system message)" if text else "(no system message)")

    def _answer(self, text: str) -> None:
        from dumbo.cli.generation import stream_answer, to_stdout

        system = [{"role": "system", "content": self._system}] if self._system else []
        question = {"role": "user", "content": text}
        reply = stream_answer(self._opened, [*system, *self._turns, question], self._options, to_stdout)
        print()
        if self._keeps_turns and reply.asked is not None:
            asked = {"role": "user", "content": reply.asked}
            self._turns += [asked, {"role": "assistant", "content": reply.text}]
