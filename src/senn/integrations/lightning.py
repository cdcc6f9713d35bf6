"""Growth in a Lightning Trainer, with module and loop as they are: `Trainer(callbacks=[SelfExpansion()])`.

A checkpoint of a grown module describes its sizes. `Trainer.fit(ckpt_path=...)` with this callback resizes a
fresh small module, its averages and its optimizers before Lightning loads their states; `load_from_checkpoint` does so
for a module without a Trainer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn import _deprecated
from senn.checkpoint import (
    ModuleSnapshot,
    describe_shapes,
    optimizer_param_names,
    rebind_optimizer,
    resize_like,
)
from senn.errors import SennError
from senn.integrations import _lightning_parts as parts
from senn.integrations.loop_checks import check_single, refuse_strategy
from senn.pytree import Output, Prepare
from senn.training.callbacks import Callback as Listener
from senn.training.growth_session import GrowthSession
from senn.training.loggers import LoggerCallback
from senn.training.train_config import TrainConfig

__all__ = [
    "SelfExpansion",
    "load_from_checkpoint",
]

try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl  # type: ignore[no-redef]
    except ImportError as error:
        raise SennError(
            "senn.integrations.lightning needs Lightning: pip install 'senn[lightning]'"
        ) from error

KEY = "senn"
"""Key of what senn adds to a checkpoint."""


@_deprecated.aliased
class SelfExpansion(pl.Callback):
    """Grows a LightningModule while its Trainer trains it.

    Rounds come after optimizer steps, at fractions of `Trainer.estimated_stepping_batches`, and score candidates on the
    last batches that passed, which are kept only when a round is near. Any optimizer that the module configures is
    carried along, with its groups, schedulers, gradient clipping, accumulation and mixed precision; so are averages of
    the weights that callbacks or the module keep. Under `DDPStrategy` all processes grow one model together, from all
    their batches, and the first one records it. If the loss fails on a batch, or a change fails its verification,
    training goes on and the failure is recorded.

    Args:
        recipe: settings of growth; None for the defaults. `GrowthSession` lists the fields that are used.
        loss: the training loss, `loss(outputs, targets)`, a mean over samples.
        prepare: makes inputs, targets and perhaps weights of a batch; None if a batch is a tuple of these.
        model: name of the submodule that grows and is called with the inputs; None for the module itself.
        samples: number of training samples, for prices; None for that of the Trainer's data set.
        ignore: names of modules that keep their sizes.
        output: finds the tensor that the loss takes in what the model returns; None if it returns that tensor.
        callbacks: listeners to the records (`senn.training.Callback`).
        log: True to send figures, texts and an image to the Trainer's loggers.

    Attributes:
        session: the `GrowthSession`: `session.history` has all records, `session.grower` is the grower.

    Raises:
        SennError: at the start of training, if the strategy takes the model apart (FSDP, DeepSpeed), if `model` isn't a
            submodule, or if its parameters aren't held by exactly one optimizer.
    """

    def __init__(
        self,
        recipe: TrainConfig | None = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        prepare: Prepare | None = None,
        model: str | None = None,
        samples: int | None = None,
        ignore: Sequence[str] = (),
        output: Output | None = None,
        callbacks: Iterable[Listener] = (),
        log: bool = True,
    ) -> None:
        self.model, self.log, self._callbacks = model, log, [*callbacks]
        self.session = GrowthSession(
            recipe,
            loss=loss,
            prepare=prepare,
            samples=samples,
            ignore=ignore,
            output=output,
            callbacks=self._callbacks,
        )
        self._optimizer_names: Sequence[Any] | None = None
        self._snapshots: list[ModuleSnapshot] = []
        self._state: Mapping[str, Any] | None = None

    # -- before training

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint.

        Unique before `setup`: Lightning refuses equal keys first, in a sentence that doesn't say what is wrong.
        """
        key: str = super().state_key
        return key if self._snapshots else f"{key}, {id(self)}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the module's checkpoints describe its sizes, and resize the module before one is loaded.

        Args:
            trainer: the Trainer.
            pl_module: the module that it trains.
            stage: `fit` or another stage of the Trainer's.

        Raises:
            SennError: the strategy takes the model apart, there is another `SelfExpansion`, or the module has no
                submodule of that name.
        """
        _check_strategy(trainer.strategy)
        check_single(trainer.callbacks, SelfExpansion)  # type: ignore[attr-defined]
        grown = parts.submodule(pl_module, self.model)
        self._optimizer_names = self._state = None
        if not self._snapshots or self._snapshots[0].model is not grown:
            self._snapshots = [ModuleSnapshot(grown)]
        loading, saving = pl_module.on_load_checkpoint, pl_module.on_save_checkpoint

        # The module's own hooks are wrapped, since those of callbacks come too late: Lightning loads the module's
        # numbers before it calls them, and it doesn't call them at all for checkpoints with `save_weights_only`.
        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            self._resize(trainer, pl_module, checkpoint)
            loading(checkpoint)

        def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
            self.on_save_checkpoint(trainer, pl_module, checkpoint)
            saving(checkpoint)

        _unhook(pl_module)
        vars(pl_module).update(
            on_load_checkpoint=on_load_checkpoint, on_save_checkpoint=on_save_checkpoint
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the parameters of fresh optimizers the order in which a checkpoint has their states.

        Args:
            trainer: the Trainer.
            pl_module: the module that it trains.
        """
        if self._optimizer_names is not None:
            for optimizer, names in zip(trainer.optimizers, self._optimizer_names, strict=False):
                rebind_optimizer(optimizer, pl_module, names)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the session, or resume it, now that everything is restored.

        Args:
            trainer: the Trainer.
            pl_module: the module that it trains.

        Raises:
            SennError: the parameters aren't held by exactly one optimizer, or the state isn't that of a session.
        """
        model = parts.submodule(pl_module, self.model)
        for copy in self._averages(trainer, pl_module):
            self._snapshot_of(copy)
        loggers: list[LoggerCallback] = []
        if self.log and trainer.loggers:
            loggers.append(
                LoggerCallback(
                    trainer.loggers, image=importlib.util.find_spec("matplotlib") is not None
                )
            )
        self.session.callbacks = [*self._callbacks, *loggers]
        self.session.epoch = trainer.current_epoch + 1
        self.session.start(
            model,
            parts.optimizer_of(model, trainer.optimizers),
            steps=trainer.estimated_stepping_batches,
            samples=parts.number_of_samples(trainer.train_dataloader),
            averages=lambda: self._averages(trainer, pl_module),
            wrapper=lambda: trainer.strategy.model,
            state=self._state,
        )
        for one in loggers:
            one.restart(self.session.history)

    # -- training

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the epoch for the records.

        Args:
            trainer: the Trainer.
            pl_module: the module that it trains.
        """
        self.session.epoch = trainer.current_epoch + 1

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the batch if a round is near, and grow if one is due.

        Args:
            trainer: the Trainer.
            pl_module: the module that it trains.
            outputs: what the training step returned.
            batch: the batch.
            batch_idx: its number in the epoch.
        """
        # Optimizer steps: with accumulation several batches make one.
        step = trainer.global_step
        if self.session.needs_batch(step):
            self.session.add_batch(batch, step)
            self.session.grow(step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Complete the records at the end of training.

        Args:
            trainer: the Trainer.
            pl_module: the module that it trains.
        """
        self.session.close(trainer.global_step)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks off the module.

        Args:
            trainer: the Trainer.
            pl_module: the module that it trains.
            exception: what ended training.
        """
        _unhook(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the hooks off the module.

        Args:
            trainer: the Trainer.
            pl_module: the module that it trains.
            stage: `fit` or another stage of the Trainer's.
        """
        _unhook(pl_module)

    # -- checkpoints

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the sizes of the module, and the order of its optimizers' parameters.

        Args:
            trainer: the Trainer.
            pl_module: the module that it trains.
            checkpoint: what is saved; changed in place.
        """
        checkpoint[KEY] = {
            "model": self.model,
            "sizes": describe_shapes(parts.submodule(pl_module, self.model)),
            "optimizers": [
                optimizer_param_names(optimizer, pl_module) for optimizer in trainer.optimizers
            ],
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the session; empty before training."""
        return {} if self.session.grower is None else self.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a session until there is an optimizer to resume it with."""
        # Lightning restores callbacks before it makes optimizers.
        self._state = state_dict

    # -- inside

    def _resize(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Mapping[str, Any]
    ) -> None:
        saved = checkpoint.get(KEY)
        if saved is None:
            return
        if saved["model"] != self.model:
            raise SennError(
                f"the checkpoint is of a run that grew model={saved['model']!r}, not {self.model!r}"
            )
        for model in [parts.submodule(pl_module, self.model), *self._averages(trainer, pl_module)]:
            resize_like(model, saved["sizes"], self._snapshot_of(model))
        self._optimizer_names = saved["optimizers"]

    def _snapshot_of(self, model: nn.Module) -> ModuleSnapshot:
        """Return the submodules that a model had when it was first seen."""
        for snapshot in self._snapshots:
            if snapshot.model is model:
                return snapshot
        self._snapshots.append(ModuleSnapshot(model))
        return self._snapshots[-1]

    def _averages(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[nn.Module]:
        return parts.averages(trainer.callbacks, pl_module, self.model)  # type: ignore[attr-defined]


def load_from_checkpoint(
    path: str | Path, module: pl.LightningModule, *, weights_only: bool = True
) -> Any:
    """Resize a fresh module to a checkpoint and load it: `LightningModule.load_from_checkpoint` for grown modules.

    Args:
        path: checkpoint that was written with `SelfExpansion` among the Trainer's callbacks.
        module: of the same class, of any size; changed in place.
        weights_only: False to read checkpoints that hold objects of other classes too, by pickle: trust their source.

    Returns:
        The module.

    Raises:
        SennError: the file holds no description of its module's sizes, or that of another module.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    saved = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if saved is None:
        raise SennError(
            f"{str(path)!r} holds no sizes: it wasn't written with senn.integrations.lightning.SelfExpansion"
        )
    resize_like(parts.submodule(module, saved["model"]), saved["sizes"])
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    return module


def _unhook(pl_module: pl.LightningModule) -> None:
    for name in ("on_load_checkpoint", "on_save_checkpoint"):
        vars(pl_module).pop(name, None)


def _check_strategy(strategy: Any) -> None:
    known = pl.strategies.SingleDeviceStrategy, pl.strategies.DDPStrategy
    # DeepSpeed's is a DDPStrategy by class, but takes the model apart.
    if not isinstance(strategy, known) or isinstance(strategy, pl.strategies.DeepSpeedStrategy):
        refuse_strategy(f"Lightning's {type(strategy).__name__}")
