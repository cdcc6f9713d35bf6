"""The command `senn`: its arguments, and what its errors look like.

Nothing heavy is imported here: `senn --help` answers at once, each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

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


class Experiment(NamedTuple):
    """What `senn reproduce` says of an experiment.

    Attributes:
        about: which figure of the paper it is.
        seeds: how many by default.
        time: what these take on two cores.
        images: whether it reads a set of images, and can use a GPU.
    """

    about: str
    seeds: int
    time: str
    images: bool = True


EXPERIMENTS = {
    "regression": Experiment("figure 2: neurons added to a fit of a curve", 5, "half a minute", images=False),
    "moons": Experiment("figure 3: layers added between two half-moons", 5, "a minute", images=False),
    "mnist": Experiment("figure 4 left: sizes and accuracy over the steps", 5, "10 minutes"),
    "mnist-sizes": Experiment("figure 4 right: the size follows the number of images", 3, "10 minutes"),
    "cifar-cycles": Experiment("figure 5: widths follow the learning rate up and down", 3, "half an hour"),
    "transfer": Experiment("figure 6 and table 1: from CIFAR-10 to Tiny-ImageNet", 3, "a quarter of an hour"),
}

_ABOUT = {
    "fit": """\
Train a network that finds its own size on a table or on images, and write the network, its history and its scores to
a folder. In tables, numbers, categories, dates and missing cells are told apart by themselves. Images lie in a folder
with a sub-folder for each class, as PNG or JPEG files of any sizes and modes, or in IDX or parquet files; a
convolutional network is trained on them. A test part is held out and scored once, at the end. The files:
model.safetensors and model.json (for 'senn predict' and senn.load), results.json (scores, architecture), history.jsonl
(every epoch and change of size), growth.png.

examples:
  senn fit wine --dry-run                                what would be done
  senn fit digits --out runs/digits
  senn fit houses.csv --target price --max-params 5000
  senn fit people.csv --target job --column zip=category --column id=dropped
  senn fit photos --out runs/photos                      a folder with sub-folders such as photos/cat, photos/dog
  senn fit cifar-10 --data-dir data --epochs 10

  senn fit --resume runs/photos                          go on with a run that was interrupted or killed

The exit code is 2 for bad input; 130 after Ctrl-C and 143 after SIGTERM, which keep the best network so far and all
that is needed to go on.""",
    "predict": """\
Predict the rows of another table, or other images, with a network made by 'senn fit'. Columns are found by name, in
any order; images are resized as those of training were, and what can't be read is named and left out.

examples:
  senn predict runs/people new.csv
  senn predict runs/people new.csv --proba --out predictions.csv
  senn predict runs/photos holiday/ portrait.jpg --proba""",
    "show": """\
Show the scores, the architecture and every change of size of a run, with the decrease of the loss that it promised
and the one that followed.

example:
  senn show runs/digits""",
    "export": """\
Write a network made by 'senn fit' as something that needs no senn. What was written is read back, run beside the
network on examples, and gets its name only if it says the same.

  onnx    one file for ONNX Runtime and others; classes and the constants of the data are in its metadata
  pt2     one file for torch.export.load
  python  a folder: net.py (plain PyTorch, with a function that predicts), model.safetensors, preprocessing.json
  hub     the same with a model card and config.json, as the Hugging Face hub has it

examples:
  senn export runs/wine --to onnx                        writes runs/wine.onnx
  senn export runs/photos --to python --out photos
  senn export runs/wine --to hub --license mit""",
    "report": """\
Write a page about a run, or about several side by side: how the network grew, its curves, and for each round all that
was on offer, what was taken and why. It is one HTML file, which opens in any browser and needs no network.

examples:
  senn report runs/digits                                   writes runs/digits/report.html
  senn report runs/wine runs/wine-2 runs/wine-3 --out wines.html""",
    "reproduce": """\
Run an experiment of the paper over several seeds, print its table, and write results.json and figure.png to a folder.
Its size is one for two cores, on which it takes about the time given below; --full is the paper's, for a GPU.

experiments:
"""
    + "".join(f"  {name:14}{e.about}; {e.seeds} seeds take {e.time}\n" for name, e in EXPERIMENTS.items())
    + """
examples:
  senn reproduce moons --seeds 5 --out runs/moons-figure
  senn reproduce mnist --data-dir data
  senn reproduce mnist --full --device cuda""",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like any other."""

    def error(self, message: str) -> NoReturn:
        raise SennError(f"{message}; see '{self.prog} --help'")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after the program's name; None for those of the process.

    Returns:
        0; 2 for bad input, with one sentence on stderr; 130 after an interruption, 143 after SIGTERM.
    """
    if isinstance(sys.stdout, TextIOWrapper) and (sys.stdout.encoding.lower(), sys.stdout.errors) == (
        "utf-8",
        "strict",
    ):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are no text
    try:
        arguments = vars(parser().parse_args(argv))
        command = importlib.import_module(_COMMANDS[arguments.pop("command")])
        code: int = command.run(**arguments)
        sys.stdout.flush()
        if argv is None and code > 128:  # PyTorch takes a moment to be taken down, for which nobody wants to wait
            sys.stderr.flush()
            os._exit(code)
        return code
    except SennError as error:
        return _complain(str(error), EXIT_BAD_INPUT)
    except ModuleNotFoundError as error:
        extra = "pip install 'senn[cli]'"
        return _complain(f"this command needs the package {error.name!r}, which isn't installed: {extra}", 2)
    except KeyboardInterrupt as error:
        return _complain("interrupted", getattr(error, "code", EXIT_INTERRUPTED))
    except BrokenPipeError:  # a pager or `head` has seen enough
        _mute()
        return 0
    except OSError as error:
        _mute()
        culprit = repr(error.filename) if error.filename else "the output"
        return _complain(f"{culprit} can't be written or read: {error.strerror or error}", EXIT_BAD_INPUT)


def _mute() -> None:
    """Let nothing more go to standard output: what is still buffered would fail again when the process ends."""
    with suppress(OSError, ValueError):  # there may be no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(sentence: str, code: int) -> int:
    print(f"senn: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    from senn import __version__

    top = _Parser(
        prog="senn",
        description="Neural networks that find their own size while they train.",
        epilog="Try 'senn fit wine'; each command explains itself: 'senn fit --help'.",
    )
    top.add_argument("--version", action="version", version=f"senn {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (arguments, help_line) in {
        "fit": (_fit, "train a network on a table or on images"),
        "predict": (_predict, "predict the rows of another table, or other images"),
        "show": (_show, "show what a folder written by fit holds"),
        "export": (_export, "write a network as something that needs no senn"),
        "report": (_report, "write a page about runs, to look at in a browser"),
        "reproduce": (_reproduce, "run an experiment of the paper"),
    }.items():
        description, _, examples = _ABOUT[name].partition("\n\n")
        arguments(
            commands.add_parser(
                name,
                help=help_line,
                description=description,
                epilog=examples,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                # `senn fit --resume` must know what was said and what wasn't; `FitOptions` has the defaults.
                argument_default=argparse.SUPPRESS if name == "fit" else None,
            )
        )
    return top


def _fit(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("data", metavar="DATA", nargs="?",
        help="a CSV, TSV, Parquet or NPZ file, or digits, breast-cancer, wine, diabetes, moons; images: a folder of "
        "class folders, or with IDX or Parquet files, or mnist, cifar-10, tiny-imagenet")  # fmt: skip
    add("--target", metavar="COL", help="the column to predict (known for the built-in tables)")
    add("--out", type=Path, metavar="DIR", help="folder for the results (default: runs/NAME)")
    add("--overwrite", action="store_true", help="replace the run that the folder holds")
    add("--resume", type=Path, metavar="DIR",
        help="go on with the unfinished run in a folder, to the same end as if it had never been broken off; its data "
        "and options are known")  # fmt: skip
    add("--task", choices=("classification", "regression"), help="default: inferred from the target")
    add("--column", action="append", metavar="NAME=KIND", type=_column_kind,
        help="take a column as number, boolean, category, date or dropped (left out); may be repeated")  # fmt: skip
    add("--test-fraction", type=_fraction, metavar="F",
        help="share held out for the test, of data that has no test part of its own (default: 0.2)")  # fmt: skip
    add("--image-size", type=_positive, metavar="N",
        help="side of the squares that images become (default: the median of their shorter sides, "
        "from 32 to 64)")  # fmt: skip
    add("--no-flip", action="store_true",
        help="don't mirror images in training; grey ones, as letters may be, never are")  # fmt: skip
    add("--data-dir", metavar="DIR",
        help="folder of mnist, cifar-10 or tiny-imagenet (default: SENN_DATA, or they are downloaded)")  # fmt: skip
    add("--max-params", type=_positive, metavar="N", help="most parameters the network may have")
    add("--epochs", type=_positive, metavar="N", help="most passes over the training rows")
    add("--seed", type=_seed, metavar="N", help="decides all that is drawn at random (default: 0)")
    add(
        "--optimizer",
        metavar="NAME",
        help="natural-gradient, or one of torch.optim: adamw (default), adam, sgd, rmsprop, ...",
    )
    add("--policy", choices=("price", "paper"),
        help="when to grow: when a promise exceeds the price of its parameters, or when the paper's expansion score "
        "rises by a share (default: price)")  # fmt: skip
    add("--kappa", type=float, metavar="X", help="price policy: price of a parameter, in nats over the number of rows")
    add("--tau", type=float, metavar="X", help="paper policy: relative improvement asked")
    add("--alpha", type=float, metavar="X", help="paper policy: absolute improvement asked, as a share of lambda")
    add("--watch", action="store_true", help="show the run in a browser on this machine while it goes on")
    add("--port", type=_port, metavar="N", help="where --watch listens (default: any port that is free)")
    add("--dry-run", action="store_true", help="say what would be done and write nothing")
    add("--quiet", action="store_true", help="print nothing but errors")
    add("--json", action="store_true", help="print the results as one JSON document")


def _predict(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder written by fit")
    add("data", metavar="NEW", nargs="+",
        help="a table with the columns of the training table (further ones are ignored); or images: "
        "files or folders")  # fmt: skip
    add("--proba", action="store_true", help="add the probability of each class")
    add("--out", type=Path, metavar="FILE", help="a CSV file to write (default: standard output)")


def _show(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="DIR", help="a folder written by fit")
    command.add_argument("--json", action="store_true", help="print the results as one JSON document")


def _export(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder written by fit")
    add("--to", required=True, choices=("onnx", "pt2", "python", "hub"), help="what to write")
    add("--out", type=Path, metavar="PATH",
        help="file or folder to write (default: beside DIR, with its name: DIR.onnx, DIR-python, ...)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an earlier export")
    add("--license", metavar="NAME", help="hub: the licence that the card names, such as mit (default: none)")


def _report(command: argparse.ArgumentParser) -> None:
    command.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders written by fit")
    command.add_argument("--out", type=Path, metavar="FILE",
        help="the page (default: report.html in the folder of the run, comparison.html here for several)")  # fmt: skip


def _reproduce(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("experiment", metavar="EXPERIMENT", choices=tuple(EXPERIMENTS), help="one of those below")
    add("--seeds", type=_positive, metavar="N", help="how many random seeds (default: as many as below)")
    add("--out", type=Path, metavar="DIR", help="folder for the results (default: runs/EXPERIMENT)")
    add("--overwrite", action="store_true", help="replace the results that the folder holds")
    add("--data-dir", type=Path, metavar="DIR",
        help="folder of the images (default: that in SENN_DATA, else they are downloaded once)")  # fmt: skip
    add("--full", action="store_true", help="the paper's size (regression and moons have it anyway)")
    add("--device", metavar="NAME", help="cpu, cuda, ... for images (default: cuda if it is available, else cpu)")


def _positive(text: str) -> int:
    value = int(text) if text.strip().isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def _port(text: str) -> int:
    if not text.strip().isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a whole number up to 65535")
    return int(text)


def _seed(text: str) -> int:
    if not text.strip().isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _column_kind(text: str) -> tuple[str, str]:
    name, equals, kind = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=KIND")
    return name, kind


def run_as_script() -> Any:
    """Entry point of the process."""
    sys.exit(main())


if __name__ == "__main__":
    run_as_script()
