"""Run the command `senn` and print its errors.

Nothing heavy is imported here, so that `senn --help` answers at once: each command imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from senn._memory import is_out_of_memory
from senn._text import shortened
from senn.cli.command_line import parser
from senn.cli.signals import last_signal, noted_interrupts
from senn.cli.terminal import GuardedStream, guarded_streams
from senn.errors import SennError

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130

_COMMANDS = {
    "fit": "senn.cli.fit",
    "predict": "senn.cli.predict",
    "evaluate": "senn.cli.evaluate_command",
    "show": "senn.cli.show",
    "export": "senn.cli.export_command",
    "report": "senn.cli.report_command",
    "serve": "senn.cli.serve_command",
    "reproduce": "senn.cli.reproduce_command",
}

_SLOW = ("predict", "evaluate", "export", "report", "serve")
"""Commands that import PyTorch before they say anything of their own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of `senn`.

    Args:
        argv: arguments after the program's name; None for those of the process.

    Returns:
        Exit code: 0; 2 for bad input, with one sentence on stderr; 128 plus the number of a signal that ended the
        command, such as 130 after Ctrl-C.
    """
    with guarded_streams(), noted_interrupts():
        try:
            arguments = _parse(argv)
            name = arguments.pop("command")
            _announce(name, arguments)
            code: int = importlib.import_module(_COMMANDS[name]).run(**arguments)
            # Flushed here, so that a closed pipe or a full disk is caught below, not at Python's exit.
            sys.stdout.flush()
        except SystemExit:  # after --help
            try:
                sys.stdout.flush()
            except OSError as error:
                raise SystemExit(_explain(error)) from error
            raise
        except (Exception, KeyboardInterrupt) as error:
            code = _explain(error)
        if argv is None and code > 128:  # after a signal, without waiting for PyTorch to shut down
            sys.stderr.flush()
            os._exit(code)
        return code


def _parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """Parse a command line.

    Args:
        argv: arguments after the program's name; None for those of the process.

    Returns:
        The name of the command as `command`, and its arguments by name.

    Raises:
        SennError: an argument is unknown, missing or wrong.
    """
    top, commands = parser()
    arguments, unknown = top.parse_known_args(argv)
    if unknown:
        commands[arguments.command].refuse(unknown[0])
    return vars(arguments)


def _announce(name: str, arguments: Mapping[str, Any]) -> None:
    """Say what has begun before PyTorch is imported, which may take seconds."""
    is_silent = arguments.get("quiet") or arguments.get("json")
    is_first = os.environ.get("RANK", "0") == "0"
    if is_silent or not is_first or "torch" in sys.modules:
        return
    stream, what = sys.stdout, arguments.get("resume") or arguments.get("data")
    if name != "fit":
        # What the other commands print is their answer, and often read by a program.
        stream, what = sys.stderr, arguments.get("folder") or (arguments.get("folders") or [""])[0]
        what = what if name in _SLOW and stream.isatty() else None
    if what:
        with suppress(OSError):  # whether that ends the command is decided where it prints more
            print(f"reading {what}", file=stream, flush=True)


def _explain(error: BaseException) -> int:
    """Print what stopped a command in one sentence, and return the exit code.

    Raises:
        BaseException: the error itself, if it is a fault of senn's, whose traceback is wanted.
    """
    number = last_signal()
    if isinstance(error, SennError):
        if number is not None:  # it may be the cause: an import or a check that was broken off
            return _complain(f"interrupted; {error}", 128 + number)
        return _complain(str(error), EXIT_BAD_INPUT)
    if isinstance(error, ModuleNotFoundError):
        needed = f"this command needs the package {error.name!r}, which isn't installed"
        return _complain(f"{needed}: pip install 'senn[cli]'", EXIT_BAD_INPUT)
    if isinstance(error, KeyboardInterrupt):
        # `Interrupted` knows its signal; Python's own KeyboardInterrupt has no code.
        return _complain("interrupted", getattr(error, "code", EXIT_INTERRUPTED))
    if is_out_of_memory(error):
        return _complain("there is too little memory for this", EXIT_BAD_INPUT)
    # Ahead of OSError, its base class, which would make an error of it.
    if isinstance(error, BrokenPipeError):  # a pager or `head` has seen enough
        _mute_output()
        return 0
    if isinstance(error, OSError):
        _mute_output()
        culprit = repr(error.filename) if error.filename else "the output"
        what = f"{culprit} can't be written or read: {error.strerror or error}"
        return _complain(what, EXIT_BAD_INPUT)
    # An interrupt that ends the initialization of a module in C comes as an ImportError, and a module that is half
    # there fails in any way later.
    if number is not None:
        return _complain("interrupted", 128 + number)
    raise error


def _mute_output() -> None:
    if isinstance(sys.stdout, GuardedStream):
        sys.stdout.mute()


def _complain(sentence: str, code: int) -> int:
    # On one line, even if a message from torch or the system has several.
    with suppress(OSError):  # nobody may be there to read it, but the exit code says as much
        print(f"senn: {shortened(' '.join(sentence.split()))}", file=sys.stderr)
    return code


def run_as_script() -> Any:
    """Run the process's command and exit with its code."""
    sys.exit(main())


if __name__ == "__main__":
    run_as_script()
