"""Command lines of `senn`: options, help texts and examples.

The values of options are checked where they are parsed, so that an error names the option.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from senn.cli.argument_parser import SentenceParser
from senn.cli.growth_options import add_growth_options, add_time_limit, positive_integer
from senn.cli.help_texts import ABOUT, EXPERIMENTS
from senn.cli.option_types import Once, column_kind, fold_count, fraction, port, seed
from senn.cli.reading_options import add_reading_options


def parser() -> tuple[argparse.ArgumentParser, Mapping[str, SentenceParser]]:
    """Build the parser of all commands, and those of each."""
    from senn import __version__

    top = SentenceParser(
        prog="senn",
        description="Train neural networks that find their own size.",
        epilog="Try 'senn fit wine'. Each command has its own help: 'senn fit --help'.",
    )
    top.add_argument("--version", action="version", version=f"senn {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (arguments, help_line) in {
        "fit": (_fit, "train a network on a table or on images"),
        "predict": (_predict, "predict the rows of another table, or the classes of images"),
        "evaluate": (_evaluate, "score a network on other labeled rows or images"),
        "show": (_show, "show the results in a folder written by fit"),
        "export": (_export, "write a network in a form that doesn't need senn"),
        "report": (_report, "write a page about runs, for a browser"),
        "serve": (_serve, "answer requests for predictions over HTTP"),
        "reproduce": (_reproduce, "run an experiment of the paper"),
    }.items():
        description, _, examples = ABOUT[name].partition("\n\n")
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
    return top, commands.choices


def _fit(command: argparse.ArgumentParser) -> None:
    _add_data_options(command)
    _add_image_options(command.add_argument_group("images"))
    _add_training_options(command.add_argument_group("training"))
    add_growth_options(command.add_argument_group("growth"))
    _add_output_options(command.add_argument_group("output"))


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="a table: text such as CSV, Parquet, Feather, JSON lines, Excel, Stata or NPZ, as it is or packed (.gz, "
        ".zip), - for standard input, or digits, breast-cancer, wine, diabetes, moons; or images: a folder with a "
        "subfolder for each class, or with IDX or Parquet files, or mnist, cifar-10, tiny-imagenet",
    )
    add = command.add_argument_group("data").add_argument
    add(
        "--target",
        action=Once,
        metavar="COL",
        help="column to predict (known for the built-in tables)",
    )
    add(
        "--task",
        choices=("classification", "regression"),
        help="what to learn (default: inferred from the target)",
    )
    add(
        "--column",
        action="append",
        metavar="NAME=KIND",
        type=column_kind,
        help="read a column as number, boolean, category or date, or leave it out (dropped); may be repeated",
    )
    add(
        "--test-fraction",
        type=fraction,
        metavar="F",
        help="share of the rows held out for the test, unless the data have a test part (default: 0.2)",
    )

    add(
        "--test",
        metavar="PATH",
        help="score the network on this table or folder instead: all of DATA is trained on",
    )
    add(
        "--group",
        action=Once,
        metavar="COL",
        help="keep rows of one value together (a patient's visits) in training, validation and test",
    )
    add(
        "--time",
        action=Once,
        metavar="COL",
        help="hold out the latest rows by this column of dates or numbers, for the test and, before them, validation",
    )
    add(
        "--cv",
        type=fold_count,
        metavar="K",
        help="before the run, train K networks from scratch, each tested on another part of the rows (which follow "
        "--group and --time), and print their scores",
    )
    add_reading_options(add)


def _add_image_options(images: argparse._ArgumentGroup) -> None:
    images.add_argument(
        "--image-size",
        type=positive_integer,
        metavar="N",
        help="side of the square to which images are resized, in pixels (default: the median of "
        "their shorter sides, from 32 to 64)",
    )
    images.add_argument(
        "--no-flip",
        action="store_true",
        help="never mirror images in training; gray images, which may be letters, never are",
    )
    images.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder of mnist, cifar-10 or tiny-imagenet (default: the folder in SENN_DATA, else they are downloaded)",
    )


def _add_training_options(training: argparse._ArgumentGroup) -> None:
    add = training.add_argument
    add(
        "--epochs",
        type=positive_integer,
        metavar="N",
        help="upper limit of passes over the training rows",
    )
    add_time_limit(training)
    add(
        "--metric",
        action=Once,
        metavar="NAME",
        help="score of scikit-learn's (f1, roc_auc, neg_mean_absolute_error, ...) that chooses the epoch that is kept",
    )
    add("--seed", type=seed, metavar="N", help="seed of all random numbers (default: 0)")
    add(
        "--threads",
        type=positive_integer,
        metavar="N",
        help="threads that compute (default: OMP_NUM_THREADS if it is set, else by the work of a step)",
    )
    add(
        "--optimizer",
        metavar="NAME",
        help="natural-gradient, or one of torch.optim: adamw (default), adam, sgd, rmsprop, ...",
    )


def _add_output_options(output: argparse._ArgumentGroup) -> None:
    add = output.add_argument
    add("--out", type=Path, metavar="DIR", help="folder for the results (default: runs/NAME)")
    add("--overwrite", action="store_true", help="replace the run that the folder holds")
    add(
        "--resume",
        type=Path,
        metavar="DIR",
        help="resume the unfinished run in a folder, to the same end as without the interruption; "
        "its data and options are known",
    )
    add(
        "--continue",
        dest="continued",
        metavar="DIR",
        help="go on with the network of a finished run, on the rows or images of DATA; classes that are new get "
        "outputs of their own",
    )
    add("--watch", action="store_true", help="show the run in a browser on this machine")
    add("--port", type=port, metavar="N", help="port of --watch (default: any free one)")
    add("--dry-run", action="store_true", help="show what would be done, and write nothing")
    add("--quiet", action="store_true", help="print nothing but errors")
    add("--json", action="store_true", help="print the results as one JSON document")


def _predict(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder written by fit")
    add(
        "data",
        metavar="NEW",
        nargs="+",
        help="a table with the columns of the training table (others are ignored), as for fit, or - for standard "
        "input; or images: files or folders",
    )
    add("--proba", action="store_true", help="add the probability of each class")
    add(
        "--keep",
        action="append",
        metavar="COL",
        help="write this column of the table before the predictions, such as a key; may be repeated",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write: .csv, .tsv, .parquet, .feather or .jsonl (default: CSV on standard output)",
    )
    add_reading_options(add)


def _evaluate(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder written by fit")
    add("data", metavar="FILE", help="a table with the target's column, or a folder of images")
    add("--metric", action=Once, metavar="NAME", help="a further score, by scikit-learn's name")
    add("--json", action="store_true", help="print the scores as one JSON document")


def _show(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="DIR", help="a folder written by fit")
    command.add_argument(
        "--json", action="store_true", help="print the results as one JSON document"
    )


def _export(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder written by fit")
    add("--to", required=True, choices=("onnx", "pt2", "python", "hub"), help="format to write")
    add(
        "--out",
        type=Path,
        metavar="PATH",
        help="file or folder to write (default: DIR.onnx, DIR.pt2, DIR-python or DIR-hub)",
    )
    add("--overwrite", action="store_true", help="replace an earlier export")
    add(
        "--license",
        metavar="NAME",
        help="hub: license named in the model card, such as mit (default: none)",
    )


def _report(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="folders written by fit")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="page to write (default: report.html in the folder of the run; comparison.html here for several)",
    )


def _serve(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("folder", type=Path, metavar="DIR", help="a folder written by fit")
    add(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="name or address to listen on (default: 127.0.0.1, which only this machine reaches)",
    )
    add(
        "--port",
        type=port,
        default=8000,
        metavar="N",
        help="port (default: 8000; 0 for a free one)",
    )
    add(
        "--token",
        metavar="TEXT",
        help="token that requests must bear (default: that in SENN_TOKEN, else one is drawn and printed)",
    )
    add(
        "--max-rows",
        type=positive_integer,
        default=10_000,
        metavar="N",
        help="rows or images of a request, at most (default: 10000)",
    )
    add(
        "--max-body",
        type=positive_integer,
        default=16 << 20,
        metavar="BYTES",
        help="bytes of a request, at most (default: 16777216)",
    )


def _reproduce(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "experiment",
        metavar="EXPERIMENT",
        choices=tuple(EXPERIMENTS),
        help="name of an experiment, as below",
    )
    add(
        "--seeds",
        type=positive_integer,
        metavar="N",
        help="number of random seeds (default: as below)",
    )
    add("--out", type=Path, metavar="DIR", help="folder for the results (default: runs/EXPERIMENT)")
    add("--overwrite", action="store_true", help="replace the results that the folder holds")
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of the images (default: the folder in SENN_DATA, else they are downloaded once)",
    )
    add(
        "--full",
        action="store_true",
        help="run at the size of the paper, with the values of its authors' code",
    )
    add(
        "--device",
        metavar="NAME",
        help="cpu, cuda, ... for images (default: cuda if it is available, else cpu)",
    )
