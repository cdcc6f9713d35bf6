"""What the commands of `senn` say of themselves, with examples."""

from __future__ import annotations

from typing import NamedTuple


class Experiment(NamedTuple):
    """Describe an experiment of `senn reproduce`.

    Attributes:
        about: its figure in the paper.
        seeds: default number of seeds.
        time: time that these take on two cores.
        images: True if it reads a set of images, and can use a GPU.
    """

    about: str
    seeds: int
    time: str
    images: bool = True


EXPERIMENTS = {
    "regression": Experiment(
        "figure 2: neurons added to a fit of a curve", 10, "a minute", images=False
    ),
    "moons": Experiment(
        "figure 3: layers added between two half-moons", 10, "two minutes", images=False
    ),
    "mnist": Experiment("figure 4 left: sizes and accuracy over the steps", 5, "10 minutes"),
    "mnist-sizes": Experiment(
        "figure 4 right: the size follows the number of images", 3, "10 minutes"
    ),
    "cifar-cycles": Experiment(
        "figure 5: widths follow the learning rate up and down", 3, "half an hour"
    ),
    "transfer": Experiment(
        "figure 6 and table 1: from CIFAR-10 to Tiny-ImageNet", 3, "a quarter of an hour"
    ),
}

ABOUT = {
    "fit": """\
Train a network that finds its own size, on a table or on images, and write the network, its
history and its scores to a folder. In tables, senn recognizes numbers, categories, dates and
missing cells by itself. Images are PNG, JPEG, WebP, BMP, GIF, TIFF or PPM files of any size in a
folder with one subfolder for each class, or IDX or Parquet files; they train a convolutional
network. A test part is held out and scored once, at the end. The files are model.safetensors and model.json
(for 'senn predict' and senn.load), results.json (scores, architecture), history.jsonl (every
epoch and change of size), test.json (what 'senn report' draws of the test) and growth.png.

examples:
  senn fit wine --dry-run                                show what would be done
  senn fit digits --out runs/digits
  senn fit houses.csv --target price --max-params 5000
  senn fit people.csv --target job --column zip=category --column id=dropped
  senn fit photos --out runs/photos                      subfolders such as photos/cat, photos/dog
  senn fit cifar-10 --data-dir data --epochs 10

  senn fit --resume runs/photos                          resume a run that was interrupted or killed

The exit code is 2 for bad input, 130 after Ctrl-C and 143 after SIGTERM. The last two save the
best network so far, and all that is needed to resume.""",
    "predict": """\
Predict the rows of another table, or the classes of other images, with a network made by
'senn fit'. Columns are found by name, in any order, and read as in training; categories that training
never saw and numbers that are written otherwise are counted on stderr. Images are resized like
those of training; files that can't be read are named and left out.

examples:
  senn predict runs/people new.csv
  senn predict runs/people new.csv --proba --out predictions.csv
  senn predict runs/people new.parquet --keep id --out predictions.parquet
  zcat new.csv.gz | senn predict runs/people -
  senn predict runs/photos holiday/ portrait.jpg --proba""",
    "evaluate": """\
Score a network made by 'senn fit' on other labeled rows: a table with the target's column, or a
folder of images with a subfolder for each class. Scores, intervals and confusion matrix are
those of 'senn fit', beside the guess of the most frequent class or the mean of the run.

examples:
  senn evaluate runs/people new-people.csv
  senn evaluate runs/fraud june.csv --metric average_precision
  senn evaluate runs/photos fresh-photos --json""",
    "show": """\
Show the scores and the architecture of a run, and every change of size with the decrease of the
loss that was expected of it and the decrease that followed.

example:
  senn show runs/digits""",
    "export": """\
Write a network made by 'senn fit' in a form that doesn't need senn. The export is read back and
compared with the network on examples; it gets its name only if both agree.

  onnx    one file for ONNX Runtime and others; its metadata hold the classes and the encoding
  pt2     one file for torch.export.load
  python  a folder: net.py (plain PyTorch with a predict function), model.safetensors,
          preprocessing.json
  hub     the same with a model card and config.json, for the Hugging Face hub

examples:
  senn export runs/wine --to onnx                        writes runs/wine.onnx
  senn export runs/photos --to python --out photos
  senn export runs/wine --to hub --license mit""",
    "report": """\
Write a page about one run, or about several side by side: how the network grew, its curves, and
for each round every candidate, what was accepted and why. It is a single HTML file, which opens
in any browser and loads nothing from the network.

examples:
  senn report runs/digits                                writes runs/digits/report.html
  senn report runs/wine runs/wine-2 runs/wine-3 --out wines.html""",
    "serve": """\
Answer requests for predictions with a network made by 'senn fit', until Ctrl-C. Needs the extra
'serve': pip install 'senn[serve]'. Requests and answers are JSON; POST /predict takes rows, or images
in base64, GET /model says what is predicted from what, GET /health that it is up. All but the last
need the token: it stands in SENN_TOKEN, or is drawn and printed.

examples:
  senn serve runs/wine
  SENN_TOKEN=secret senn serve runs/wine --port 9000
  curl -H "Authorization: Bearer secret" -H "Content-Type: application/json" \\
    -d '{"rows": [{"town": "Ulm", "size": 3}], "proba": true}' http://127.0.0.1:9000/predict""",
    "reproduce": """\
Run an experiment of the paper with several seeds, print its table, and write results.json and
figure.png to a folder. The default size suits two cores and takes about the time given below;
--full is the size of the paper with the values of its authors' code, images for a GPU. The
experiments are an extra of their own: pip install 'senn[reproduce]'.

experiments:
"""
    + "".join(
        f"  {name:14}{e.about}; {e.seeds} seeds take {e.time}\n" for name, e in EXPERIMENTS.items()
    )
    + """
examples:
  senn reproduce moons --seeds 10 --out runs/moons-figure
  senn reproduce mnist --data-dir data
  senn reproduce mnist --full --device cuda""",
}
