"""Growth in a skorch net, as it is: `NeuralNetClassifier(MyModule, callbacks=[SelfExpansion()])`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from senn.errors import SennError
from senn.integrations.loop_checks import check_single
from senn.pytree import Output, Prepare
from senn.training.callbacks import Callback as Listener
from senn.training.growth_session import GrowthSession
from senn.training.train_config import TrainConfig

__all__ = [
    "SelfExpansion",
]

try:
    from skorch.callbacks import Callback
    from skorch.dataset import unpack_data
    from skorch.utils import to_tensor
except ImportError as error:
    raise SennError("senn.integrations.skorch needs skorch: pip install 'senn[skorch]'") from error


class SelfExpansion(Callback):  # type: ignore[misc]
    """Grows the module of a net while the net is fitted.

    Rounds come after optimizer steps, at fractions of `max_epochs`, and score candidates on the last batches that
    passed. If the loss fails on a batch, or a change fails its verification, fitting goes on and the failure is
    recorded.

    A net that has grown is pickled as any other, and `partial_fit` goes on with it; `sklearn.base.clone` makes a small
    one that grows anew. `net.save_params` saves numbers without sizes, so `load_params`, by which skorch's `Checkpoint`
    and `LoadInitState` load too, fits only a module that has the same. What `senn.save(folder, net.module_)` saves is
    loaded into a fresh small net, to predict, by `net.initialize()` and `senn.load(folder, into=net.module_)`.

    Args:
        recipe: settings of growth; None for the defaults. `GrowthSession` lists the fields that are used.
        loss: the training loss, `loss(outputs, targets)`, a mean over samples; None for the net's criterion.
        prepare: makes inputs, targets and perhaps weights of a batch; None if a batch is inputs and targets.
        samples: number of training samples, for prices; None for that of the training set.
        ignore: names of modules that keep their sizes.
        output: finds the tensor that the loss takes in what the module returns; None for what the net passes to its
            criterion: under `NLLLoss` the logarithm of the probabilities.
        listeners: listeners to the records (`senn.training.Callback`).

    Attributes:
        history_: records of the last fit.

    Raises:
        SennError: at the start of fitting, if there are several of these callbacks, or `recipe` isn't a `TrainConfig`.
    """

    def __init__(
        self,
        recipe: TrainConfig | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        prepare: Prepare | None = None,
        samples: int | None = None,
        ignore: Sequence[str] = (),
        output: Output | None = None,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.recipe, self.loss, self.prepare, self.samples = recipe, loss, prepare, samples
        self.ignore, self.output, self.listeners = ignore, output, listeners

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Set up the session; it starts with the first epoch, when the number of steps is known.

        Args:
            net: the net that is fitted.
            X: its data.
            y: its targets.
            kwargs: ignored.

        Raises:
            SennError: there are several of these callbacks, or `recipe` isn't a `TrainConfig`.
        """
        check_single((one for _, one in net.callbacks_), SelfExpansion)
        self.step_, output = 0, self.output
        # skorch takes the logarithm itself where the criterion is NLLLoss, so the module returns probabilities.
        if output is None and isinstance(net.criterion_, torch.nn.NLLLoss):
            output = _log_probabilities
        self.session_ = GrowthSession(
            self.recipe,
            loss=self.loss or net.criterion_,
            prepare=self.prepare or partial(_to_device, net.device),
            samples=self.samples,
            ignore=self.ignore,
            output=output,
            callbacks=self.listeners,
        )
        # The session appends to this list; it stays when the session is dropped.
        self.history_ = self.session_.history

    def on_epoch_begin(
        self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any
    ) -> None:
        """Start the session in the first epoch.

        Args:
            net: the net that is fitted.
            dataset_train: its training set.
            dataset_valid: its validation set.
            kwargs: ignored.
        """
        self.session_.epoch = len(net.history)
        # Each call of `partial_fit` trains for `max_epochs` more, with a session of its own.
        if self.session_.grower is None:
            batches = len(net.get_iterator(dataset_train, training=True))
            self.session_.start(
                net.module_,
                net.optimizer_,
                steps=batches * net.max_epochs,
                samples=len(dataset_train),
            )

    def on_batch_end(
        self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any
    ) -> None:
        """Keep the batch if a round is near, and grow if one is due.

        Args:
            net: the net that is fitted.
            batch: the batch.
            training: False for a batch of the validation set.
            kwargs: ignored.
        """
        if not training:
            return
        self.step_ += 1
        if self.session_.needs_batch(self.step_):
            self.session_.add_batch(batch, self.step_)
            self.session_.grow(self.step_)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Complete the records, and drop all but them, so that the net can be pickled.

        Args:
            net: the net that was fitted.
            X: its data.
            y: its targets.
            kwargs: ignored.
        """
        if self.session_.grower is not None:
            self.session_.close(self.step_)
        # Without it the net is pickled as any other.
        del self.session_


def _log_probabilities(probabilities: Tensor) -> Tensor:
    """Compute what skorch passes to NLLLoss."""
    return (probabilities + torch.finfo(probabilities.dtype).eps).log()


def _to_device(device: Any, one: Any) -> tuple[Any, Any]:
    """Unpack a batch, and move it where the net is."""
    inputs, targets = unpack_data(one)
    return to_tensor(inputs, device), to_tensor(targets, device)
