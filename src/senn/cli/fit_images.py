"""Prepare images for `senn fit`, and predict their classes for `senn predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from senn.cli.continued_images import ContinuedImages
from senn.cli.continued_run import parts_of
from senn.cli.prepared_data import (
    FEWEST_ROWS,
    check_start,
    checksum_of,
    chosen_policy,
    class_line,
    class_rows,
    no_validation_note,
    part_sizes,
    planned,
    recipe_fields,
    refuse_fraction,
    refuse_options,
)
from senn.cli.scorer import Scorer
from senn.data import Target, split
from senn.data.images import (
    Collection,
    ImageEncoder,
    Images,
    collect,
    collect_test,
    flat,
    planes,
)
from senn.data.images.image_arrays import duplicate_notes
from senn.data.tabular.table_notes import alike_classes
from senn.errors import SennError
from senn.nn import ConvNet
from senn.runs import FitOptions
from senn.training import Callback, TrainConfig, TrainResult
from senn.training.augment import ChannelStats
from senn.training.image_training import (
    PRICES,
    build_conv_net,
    image_config,
    start_widths,
    train_images,
)
from senn.training.run_state import Checkpointer
from senn.training.trained_run import image_outputs

SMALLEST, LARGEST = 8, 512
"""Least and largest side of `--image-size`, in pixels: below, convolutions see no shapes; above, memory runs out."""

_MOST_NAMED = 20
"""Unreadable files that are named one by one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ImagePreparation:
    """Hold images as numbers; implements `Prepared`.

    Attributes:
        collection: the images as read.
        train_part: images to train on.
        test_part: images held out for the test.
        encoder: encoding of new images.
        recipe: training configuration.
        scorer: what predictions of the test part are scored by.
        validation_part: images that decide when to stop; None where training holds some out.
        remarks: on the images, one sentence each.
        continued: the run whose network goes on; None for a network that begins.
    """

    collection: Collection
    train_part: Images
    test_part: Images
    encoder: ImageEncoder
    recipe: TrainConfig
    scorer: Scorer
    validation_part: Images | None = None
    remarks: tuple[str, ...] = ()
    continued: ContinuedImages | None = None

    @property
    def name(self) -> str:
        """Name of the data set, or of its folder."""
        return self.collection.name

    @property
    def task(self) -> Literal["classification"]:
        """Task of the network: images are only classified."""
        return "classification"

    @property
    def notes(self) -> list[str]:
        """Remarks on the images, with the files that were left out."""
        left_out = self.collection.left_out
        notes = [*self.remarks]
        if left_out:
            notes.append(f"left out {_images(len(left_out))} that can't be read:")
            notes += [one.reason for one in left_out[:_MOST_NAMED]]
            if len(left_out) > _MOST_NAMED:
                notes.append(f"... and {len(left_out) - _MOST_NAMED:,} more")
        return notes

    @property
    def start(self) -> tuple[int, ...]:
        """Widths of the convolutions before training."""
        return self.recipe.hidden or start_widths(self.encoder.side)

    def line(self) -> str:
        """Describe the data in one line."""
        train, test, rows = len(self.train_part), len(self.test_part), self._rows
        given = (
            ""
            if self.validation_part is None
            else f"{len(self.validation_part):,} for validation, "
        )
        side, channels = self.encoder.side, self.encoder.channels
        return (
            f"{self.name}: {_images(rows)} ({train:,} to train on, {given}{test:,} for the test), "
            f"{len(self.encoder.labels):,} classes, taken as {side} x {side} x {channels}"
        )

    @property
    def _rows(self) -> int:
        parts = self.train_part, self.validation_part, self.test_part
        return sum(len(part) for part in parts if part is not None)

    def details(self) -> list[str]:
        """Count the training images of each class."""
        counts = class_rows(self.encoder.labels, self.train_part.labels)
        return [class_line("to train on", self.encoder.labels, counts)]

    def summary(self) -> dict[str, Any]:
        """Describe the data and their encoding as a JSON-able record, for `results.json`."""
        encoder = self.encoder
        left_out = [{"file": one.name, "reason": one.reason} for one in self.collection.left_out]
        counts = class_rows(encoder.labels, self.train_part.labels, self.test_part.labels)
        return {
            "name": self.name,
            "kind": "images",
            "rows": self._rows,
            "train_rows": len(self.train_part),
            "test_rows": len(self.test_part),
            "shape": [encoder.side, encoder.side, encoder.channels],
            "classes": list(encoder.labels),
            "class_rows": counts,
            "flip": encoder.flip,
            "left_out": left_out,
            "notes": list(self.remarks),
        }

    def plan(self) -> dict[str, Any]:
        """Describe the start of training and the price of growth there, JSON-able."""
        model, hidden = self.network(), self.start
        taps = 9  # weights of a 3 x 3 kernel
        # A unit's parameters depend on its layer, so the plan names the most expensive one.
        reads = [self.encoder.channels, *hidden[:-1]]
        read_by = [*(taps * width for width in hidden[1:]), len(self.encoder.labels)]
        # One more channel: its kernel, its scale and shift in the norm, and the weights that read it.
        unit = max(taps * before + 2 + after for before, after in zip(reads, read_by, strict=True))
        return planned(model, self.recipe, hidden, self._part_sizes(), unit)

    def _part_sizes(self) -> tuple[int, int]:
        return _part_sizes(self.train_part, self.validation_part, self.recipe)

    def digest(self) -> str:
        """Return a SHA-256 of the encoded data, by which a resumed run knows its data."""
        given = [] if self.validation_part is None else [self.validation_part]
        parts = self.train_part, self.test_part, *given
        network = [] if self.continued is None else parts_of(self.network())
        arrays = [array for part in parts for array in (part.pixels, part.labels)]
        return checksum_of(self.record(), *arrays, *network)

    def network(self) -> ConvNet:
        """Return the network that training starts from; if it begins anew, its parameters are other draws."""
        if self.continued is None:
            return _fresh(self.encoder, self.recipe)
        standard = ChannelStats(mean=self.encoder.mean, std=self.encoder.std)
        x = standard(_tensor(planes(self.train_part)[:256]))
        return self.continued.network(self.encoder.labels, x)

    def train(
        self, callbacks: Sequence[Callback], checkpointer: Checkpointer | None = None
    ) -> TrainResult:
        """Train a network.

        Args:
            callbacks: that hear of every record.
            checkpointer: keeps the run's state, and has the state to resume from; None to keep nothing.
        """
        return train_images(
            _tensor(planes(self.train_part)),
            _tensor(self.train_part.labels),
            classes=len(self.encoder.labels),
            standard=ChannelStats(mean=self.encoder.mean, std=self.encoder.std),
            flip=self.encoder.flip,
            recipe=self.recipe,
            validation=self._validation(),
            callbacks=callbacks,
            checkpointer=checkpointer,
            model=None if self.continued is None else self.network(),
        )

    def _validation(self) -> tuple[Tensor, Tensor] | None:
        part = self.validation_part
        return None if part is None else (_tensor(planes(part)), _tensor(part.labels))

    @property
    def times(self) -> None:
        """None: images have no order."""
        return

    @property
    def latest(self) -> None:
        """None: images have no order."""
        return

    @property
    def folds(self) -> tuple[()]:
        """None: images aren't cross-validated."""
        return ()

    def fold(self, number: int) -> ImagePreparation:
        """Refuse: there are no folds.

        Args:
            number: of the fold.
        """
        raise IndexError(number)

    @property
    def clusters(self) -> None:
        """None: each image stands for itself."""
        return

    def test_outputs(self, model: nn.Module) -> NDArray[Any]:
        """Compute a network's outputs for the test part, (images, classes)."""
        return image_outputs(model, self.encoder, planes(self.test_part))

    def train_arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return pixels (images, numbers) from 0 to 1 and classes of the training part, for baselines."""
        return flat(self.train_part)

    def test_arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return those of the test part."""
        return flat(self.test_part)

    mean = 0.0
    """Classes have none."""

    def test_pixels(self) -> NDArray[np.uint8]:
        """Return the images of the test part, (images, side, side, channels)."""
        return self.test_part.pixels

    def record(self) -> dict[str, Any]:
        """Return the encoding of the images, JSON-able."""
        return self.encoder.to_dict()


def _part_sizes(train: Images, validation: Images | None, recipe: TrainConfig) -> tuple[int, int]:
    if validation is not None:
        return len(train), len(validation)
    return part_sizes(_tensor(train.labels), recipe)


def _remarks(collection: Collection, train: Images, test: Images, recipe: TrainConfig) -> list[str]:
    notes = [*collection.notes, *alike_classes(collection.classes), *duplicate_notes(train, test)]
    fitted, held_out = _part_sizes(train, collection.validation, recipe)
    if not held_out:
        notes.append(no_validation_note(fitted, "images", recipe))
    return notes


def _fresh(encoder: ImageEncoder, recipe: TrainConfig) -> ConvNet:
    """Build a network like the one that training starts from; its parameters are other draws."""
    hidden = recipe.hidden or start_widths(encoder.side)
    # The draws for this network must not shift those of training.
    with torch.random.fork_rng(devices=[]):
        return build_conv_net(encoder.channels, encoder.side, len(encoder.labels), hidden)


def _encoder(collection: Collection, train: Images, no_flip: bool) -> ImageEncoder:
    """Fit the encoding to the training images."""
    pixels = train.pixels
    _, side, _, channels = pixels.shape
    # Statistics of the training images alone, or the test would leak into them.
    standard = ChannelStats.of(_tensor(planes(train)))
    colored = channels == 3 and bool((pixels != pixels[..., :1]).any())
    flip = colored and not no_flip
    return ImageEncoder(
        side=side,
        channels=channels,
        mean=standard.mean,
        std=standard.std,
        labels=collection.classes,
        flip=flip,
    )


def _tensor(array: NDArray[Any]) -> Tensor:
    """Convert an array to a tensor."""
    # An array that is mapped from a file can't be written to: torch warns of it, so it is copied.
    return torch.from_numpy(np.require(array, requirements="W"))


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def prepare_images(options: FitOptions) -> ImagePreparation:
    """Read and split images, and choose their recipe, before anything is written.

    Args:
        options: of the run.

    Returns:
        Data ready for training.

    Raises:
        SennError: naming the file or option that is wrong.
    """
    refuse_options(
        options,
        (
            "target",
            "column",
            "group",
            "time",
            "cv",
            "encoding",
            "decimal",
            "ascent_steps",
            "members",
        ),
        "tables, and {data} holds images",
    )
    if options.task == "regression":
        raise SennError(
            f"{options.data!r} holds images, and senn only classifies images: --task regression is for tables"
        )
    if options.image_size is not None and not SMALLEST <= options.image_size <= LARGEST:
        raise SennError(
            f"--image-size must be from {SMALLEST} to {LARGEST}, not {options.image_size:,}"
        )
    recipe = image_config(policy=chosen_policy(options, PRICES), **recipe_fields(options))
    data_dir = None if options.data_dir is None else Path(options.data_dir)
    continued = ContinuedImages.read(options)
    if continued is None:
        collection = collect(options.data, options.image_size, data_dir)
    else:
        collection, recipe = continued.collect(options), continued.recipe(recipe)
    train, test = collection.train, collection.test
    if len(train) < FEWEST_ROWS:
        raise SennError(f"there are {_images(len(train))}; at least {FEWEST_ROWS} are needed")
    if options.test is not None:
        refuse_fraction(options)
        _, side, _, channels = train.pixels.shape
        given = collect_test(options.test, collection.classes, side, channels)
        test = given.train
        collection = replace(collection, left_out=(*collection.left_out, *given.left_out))
    if test is None:
        # A set with a published test part keeps it, so that scores can be compared with the literature.
        kept, held_out = split(len(train), options.test_fraction, options.seed, train.labels)
        train, test = train.take(kept), train.take(held_out)
    remarks = _remarks(collection, train, test, recipe)
    if continued is None:
        encoder = _encoder(collection, train, options.no_flip)
    else:
        flip = continued.encoder.flip and not options.no_flip
        encoder = replace(continued.encoder, labels=collection.classes, flip=flip)
        remarks = [*continued.notes(encoder.labels, train), *remarks]
    target = Target(name="class", task="classification", labels=encoder.labels)
    scorer = Scorer.of(target, np.asarray(train.labels), options.metric)
    made = ImagePreparation(
        collection=collection,
        train_part=train,
        test_part=test,
        encoder=encoder,
        recipe=replace(recipe, monitor=scorer.metric),
        scorer=scorer,
        validation_part=collection.validation,
        remarks=tuple(remarks),
        continued=continued,
    )
    shape = encoder.channels, encoder.side, encoder.side
    check_start(made.network(), recipe, shape)
    return made
