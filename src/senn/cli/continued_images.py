"""The run of images that `senn fit --continue` goes on with: its network and its encoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from senn.cli.continued_run import class_notes, refuse_decided
from senn.data.images import Collection, ImageEncoder, Images, collect_more
from senn.errors import SennError
from senn.nn import ConvNet
from senn.runs import FitOptions
from senn.surgery import add_outputs
from senn.training import TrainConfig
from senn.training.saved_network import load_network

_DECIDED = ("image_size",)
"""Options that a network decides which is there already."""

_IMAGES = "image", "images again, in one folder with the new ones"


@dataclass(frozen=True, kw_only=True, eq=False)
class ContinuedImages:
    """Network of a finished run on images, which is trained on.

    Attributes:
        folder: of the run.
        model: the network, with outputs for the classes of the run.
        encoder: encoding of its images, which stays as it is but for new classes.
    """

    folder: str
    model: ConvNet
    encoder: ImageEncoder

    @classmethod
    def read(cls, options: FitOptions) -> ContinuedImages | None:
        """Read the run that is to go on.

        Args:
            options: of the new run.

        Returns:
            The run; None where a network is to begin anew.

        Raises:
            SennError: the folder holds no network of images, or an option says what the network has decided.
        """
        folder = options.continued
        if folder is None:
            return None
        model, encoder = load_network(Path(folder))
        if not isinstance(encoder, ImageEncoder) or not isinstance(model, ConvNet):
            raise SennError(
                f"the run in {folder!r} is none of images, so it can't go on with images"
            )
        refuse_decided(options, _DECIDED)
        return cls(folder=folder, model=model, encoder=encoder)

    def collect(self, options: FitOptions) -> Collection:
        """Read the new images as those of the run were read, known classes first.

        Args:
            options: of the new run.

        Raises:
            SennError: as of `senn.data.images.collect`.
        """
        encoder = self.encoder
        data_dir = None if options.data_dir is None else Path(options.data_dir)
        return collect_more(options.data, encoder.labels, encoder.side, encoder.channels, data_dir)

    def network(self, labels: tuple[str, ...], x: Tensor) -> ConvNet:
        """Return the network, with outputs for new classes.

        Args:
            labels: of all classes.
            x: (images, channels, side, side) standardized images, on which outputs are compared.

        Returns:
            A network of its own for each call.
        """
        model, _ = load_network(Path(self.folder))
        assert isinstance(model, ConvNet)  # as `read` has found
        model.to(x)
        new = len(labels) - len(self.encoder.labels)
        if new:
            add_outputs(model, new, x[:256])
        return model.train()

    def recipe(self, recipe: TrainConfig) -> TrainConfig:
        """Return a recipe for the network as it is."""
        return replace(recipe, hidden=self.model.hidden)

    def notes(self, labels: tuple[str, ...], train: Images) -> list[str]:
        """Say what is new, and what will be forgotten.

        Args:
            labels: of all classes.
            train: images to train on.

        Returns:
            One sentence each.
        """
        widths = ", ".join(map(str, self.model.hidden))
        who = f"the network of {self.folder!r} goes on ({widths})"
        return [who, *class_notes(self.encoder.labels, labels, train.labels, what=_IMAGES)]
