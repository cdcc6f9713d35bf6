"""Run the command `senn` and print its errors.

Nothing heavy is imported here, so that `senn --help` answers at once: each command imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

from senn.cli.command_line import parser
from senn.errors import SennError

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130

_COMMANDS = {
    "fit": "senn.cli.fit",
    "predict": "senn.cli.predict",
    "show": "senn.cli.show",
    "export": "senn.cli.export_command",
    "report": "senn.cli.report_command",
    "reproduce": "senn.cli.reproduce_command",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of `senn`.

    Args:
        argv: arguments after the program's name; None for those of the process.

    Returns:
        Exit code: 0; 2 for bad input, with one sentence on stderr; 130 after Ctrl-C; 143 after SIGTERM.
    """
    if isinstance(sys.stdout, TextIOWrapper) and (
        sys.stdout.encoding.lower(),
        sys.stdout.errors,
    ) == (
        "utf-8",
        "strict",
    ):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names needn't be valid UTF-8
    try:
        arguments = vars(parser().parse_args(argv))
        command = importlib.import_module(_COMMANDS[arguments.pop("command")])
        code: int = command.run(**arguments)
        # Flushed here, so that a closed pipe or a full disk is caught below, not at Python's exit.
        sys.stdout.flush()
        if argv is None and code > 128:  # after a signal, without waiting for PyTorch to shut down
            sys.stderr.flush()
            os._exit(code)
        return code
    except SennError as error:
        return _complain(str(error), EXIT_BAD_INPUT)
    except ModuleNotFoundError as error:
        extra = "pip install 'senn[cli]'"
        return _complain(
            f"this command needs the package {error.name!r}, which isn't installed: {extra}", 2
        )
    except KeyboardInterrupt as error:
        # `Interrupted` knows its signal; Python's own KeyboardInterrupt has no code.
        return _complain("interrupted", getattr(error, "code", EXIT_INTERRUPTED))
    # Ahead of OSError, its base class, which would make an error of it.
    except BrokenPipeError:  # a pager or `head` has seen enough
        _mute()
        return 0
    except OSError as error:
        _mute()
        culprit = repr(error.filename) if error.filename else "the output"
        return _complain(
            f"{culprit} can't be written or read: {error.strerror or error}", EXIT_BAD_INPUT
        )


def _mute() -> None:
    """Send further output nowhere: what is still buffered would fail again at the end of the process."""
    with suppress(OSError, ValueError):  # under pytest or in a notebook there is no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(sentence: str, code: int) -> int:
    # On one line, even if a message from torch or the system has several.
    print(f"senn: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def run_as_script() -> Any:
    """Run the process's command and exit with its code."""
    sys.exit(main())


if __name__ == "__main__":
    run_as_script()
