"""The command line's parser, whose errors are one line, with the word that was probably meant."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from penult.nearest import did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors of one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr; exit with 2."""
        ends = "" if message.endswith("?") else "."
        self.exit(2, f"{self.prog}: {message}{ends} See {self.prog} --help.\n")

    def refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """Exit as error() does, for words that are no option or argument of this parser."""
        known = [option for action in self._actions for option in action.option_strings]
        guess = did_you_mean(words[0].partition("=")[0], known) if words[0].startswith("-") else ""
        self.error(f"unrecognized arguments: {' '.join(words)}{guess}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Reject a value that is no choice, and name the nearest choice."""
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            guess = did_you_mean(str(value), known)
            raise argparse.ArgumentError(action, f"{str(value)!r} is not one of {', '.join(known)}{guess}")
