"""An argument parser whose complaints are one sentence."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from senn._text import did_you_mean
from senn.errors import SennError


class SentenceParser(argparse.ArgumentParser):
    """Argument parser that raises a SennError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise a SennError with the complaint, and with what was probably meant."""
        # argparse would print three lines of usage above its one line of error.
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if found:
            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        raise SennError(f"{message}; see '{self.prog} --help'")

    def refuse(self, unknown: str) -> NoReturn:
        """Refuse an argument that isn't one of this command's."""
        # argparse lets the parser of all commands complain, whose help says nothing of options.
        guess = did_you_mean(unknown.partition("=")[0], self._option_string_actions)
        self.error(f"unrecognized argument {unknown!r}{guess}")
