"""Growth in a Lightning Trainer, with module and loop as they are: `Trainer(callbacks=[SelfExpansion()])`.

A checkpoint of a grown module holds a description of its sizes. `Trainer.fit(ckpt_path=...)` with this callback makes a
fresh small module, its averages and its optimizers what they were before Lightning loads their states;
`load_from_checkpoint` does it for a module without a Trainer.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from senn.checkpoint import ModuleSnapshot, describe_shapes, optimizer_param_names, rebind_optimizer, resize_like
from senn.errors import SennError
from senn.integrations.loop_checks import check_single, refuse_strategy
from senn.pytree import Output
from senn.training.callbacks import Callback as Listener
from senn.training.growth_session import GrowthSession, Prepare
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
        raise SennError("senn.integrations.lightning needs Lightning: pip install 'senn[lightning]'") from error

KEY = "senn"
"""Of a checkpoint: what senn adds to it."""


class SelfExpansion(pl.Callback):
    """Grows a LightningModule while its Trainer trains it.

    Rounds come after optimizer steps, at fractions of `Trainer.estimated_stepping_batches`, and look at the last
    batches that passed, which are kept only when a round is near. Any optimizer that the module configures goes along,
    with its groups, schedulers, gradient clipping, accumulation and mixed precision; so do averages of the weights that
    callbacks or the module keep. Under `DDPStrategy` all processes grow one model together, from all their batches, and
    the first one records it. Where the loss fails on a batch, or a change fails its verification, training goes on,
    and a `rollback` is recorded.

    Args:
        recipe: when, by how much, and what is looked at, see `GrowthSession`.
        loss: the training loss, `loss(outputs, targets)`, a mean over samples.
        prepare: makes inputs, targets and perhaps weights of a batch; by default it is a tuple of these.
        model: name of the submodule that grows and is called with the inputs; None for the module's own forward.
        samples: number of training samples, for prices; by default that of the Trainer's data set.
        ignore: names of modules to leave alone.
        output: finds, in what the model returns, the tensor that the loss takes.
        callbacks: told of every event (`senn.training.Callback`).
        log: whether figures, texts and an image go to the Trainer's loggers.

    Attributes:
        session: what grows the model: `session.history` has all records, `session.grower` the grower.

    Raises:
        SennError: at the start of training, if the strategy takes the model apart (FSDP, DeepSpeed), if `model` isn't a
            submodule, or if not one optimizer holds its parameters.
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
            recipe, loss=loss, prepare=prepare, samples=samples, ignore=ignore, output=output, callbacks=self._callbacks
        )
        self._names: Sequence[Any] | None = None
        self._parts: list[ModuleSnapshot] = []
        self._state: Mapping[str, Any] | None = None

    # -- before training

    @property
    def state_key(self) -> str:
        """Of its own until `setup`, which refuses several in a Trainer in a sentence that says what is wrong."""
        key: str = super().state_key
        return key if self._parts else f"{key}, {id(self)}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The module's checkpoints describe its sizes from now on, and are loaded after these have been made theirs."""
        _check_strategy(trainer.strategy)
        check_single(trainer.callbacks, SelfExpansion)  # type: ignore[attr-defined]
        grown = _part(pl_module, self.model)
        self._names = self._state = None
        if not self._parts or self._parts[0].model is not grown:
            self._parts = [ModuleSnapshot(grown)]
        loading, saving = pl_module.on_load_checkpoint, pl_module.on_save_checkpoint

        # Callbacks come too late to a checkpoint: the module's numbers are loaded before they are told of it. And those
        # with `save_weights_only` aren't told to callbacks at all. The module's own hooks come first, and always.
        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            self._regrow(trainer, pl_module, checkpoint)
            loading(checkpoint)

        def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
            self.on_save_checkpoint(trainer, pl_module, checkpoint)
            saving(checkpoint)

        self._detach(pl_module)
        vars(pl_module).update(on_load_checkpoint=on_load_checkpoint, on_save_checkpoint=on_save_checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The optimizers, made of the module, take the order in which a checkpoint has their states."""
        if self._names is not None:
            for optimizer, names in zip(trainer.optimizers, self._names, strict=False):
                rebind_optimizer(optimizer, pl_module, names)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Everything is restored: growth begins, or goes on."""
        model = _part(pl_module, self.model)
        for copy in self._copies(trainer, pl_module):
            self._parts_of(copy)
        loggers = [LoggerCallback(trainer.loggers, image=_can_draw())] if self.log and trainer.loggers else []
        self.session.callbacks = [*self._callbacks, *loggers]
        self.session.epoch = trainer.current_epoch + 1
        self.session.start(
            model, _optimizer(trainer, model), steps=trainer.estimated_stepping_batches, samples=_samples(trainer),
            averages=lambda: self._copies(trainer, pl_module), wrapper=lambda: trainer.strategy.model,
            state=self._state,
        )  # fmt: skip
        for one in loggers:
            one.restart(self.session.history)

    # -- training

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """For the records."""
        self.session.epoch = trainer.current_epoch + 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch if a round is near; grow if one is due."""
        step = trainer.global_step
        if self.session.needs_batch(step):
            self.session.add_batch(batch, step)
            self.session.grow(step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell how it ended."""
        self.session.close(trainer.global_step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave nothing behind on the module."""
        self._detach(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave nothing behind on the module."""
        self._detach(pl_module)

    # -- checkpoints

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what `resize_like` needs."""
        checkpoint[KEY] = {
            "model": self.model,
            "sizes": describe_shapes(_part(pl_module, self.model)),
            "optimizers": [optimizer_param_names(optimizer, pl_module) for optimizer in trainer.optimizers],
        }

    def state_dict(self) -> dict[str, Any]:
        """What growth needs to go on."""
        return {} if self.session.grower is None else self.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until there is an optimizer."""
        self._state = state_dict

    @property
    def companion(self) -> GrowthSession:
        """The old name of `session`."""
        warnings.warn("companion is now session; the old name goes in 0.3.0", DeprecationWarning, stacklevel=2)
        return self.session

    # -- inside

    def _regrow(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        saved = checkpoint.get(KEY)
        if saved is None:
            return
        _check_part(saved, self.model)
        for model in [_part(pl_module, self.model), *self._copies(trainer, pl_module)]:
            resize_like(model, saved["sizes"], self._parts_of(model))
        self._names = saved["optimizers"]

    def _parts_of(self, model: nn.Module) -> ModuleSnapshot:
        """The parts that a model had when it was first seen."""
        for parts in self._parts:
            if parts.model is model:
                return parts
        self._parts.append(ModuleSnapshot(model))
        return self._parts[-1]

    def _copies(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[nn.Module]:
        """Averages of what grows, which callbacks and the module keep."""
        kept = [value for callback in trainer.callbacks for value in vars(callback).values()]  # type: ignore[attr-defined]
        kept = [one.module if isinstance(one, AveragedModel) else one for one in kept]
        whole = [one for one in kept if type(one) is type(pl_module) and one is not pl_module]
        copies = [_part(one, self.model) for one in whole]
        grown = _part(pl_module, self.model)
        for name, one in pl_module.named_modules():
            if isinstance(one, AveragedModel):
                if grown is pl_module:
                    raise SennError(f"the module keeps the average {name!r} of a part of it: name that by model=...")
                if type(one.module) is type(grown):
                    copies.append(one.module)
        return copies

    def _detach(self, pl_module: pl.LightningModule) -> None:
        for name in ("on_load_checkpoint", "on_save_checkpoint"):
            vars(pl_module).pop(name, None)


def load_from_checkpoint(path: str | Path, module: pl.LightningModule, *, weights_only: bool = True) -> Any:
    """Make a fresh module what a checkpoint holds, of any size: `LightningModule.load_from_checkpoint` for grown ones.

    Args:
        path: of a checkpoint that was written with `SelfExpansion` among the Trainer's callbacks.
        module: of the same class; changed in place.
        weights_only: False reads checkpoints that hold objects of other classes too, by pickle: trust their source.

    Returns:
        The module.

    Raises:
        SennError: the file holds no description of its module's sizes, or of another one's.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    saved = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if saved is None:
        raise SennError(
            f"{str(path)!r} holds no sizes: it wasn't written with senn.integrations.lightning.SelfExpansion"
        )
    resize_like(_part(module, saved["model"]), saved["sizes"])
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    return module


def _part(module: nn.Module, name: str | None) -> nn.Module:
    """The module that grows."""
    try:
        return module if name is None else module.get_submodule(name)
    except AttributeError as error:
        raise SennError(f"a {type(module).__name__} has no part {name!r} that could grow") from error


def _check_strategy(strategy: Any) -> None:
    known = pl.strategies.SingleDeviceStrategy, pl.strategies.DDPStrategy
    if not isinstance(strategy, known) or isinstance(strategy, pl.strategies.DeepSpeedStrategy):
        refuse_strategy(f"Lightning's {type(strategy).__name__}")


def _check_part(saved: Mapping[str, Any], name: str | None) -> None:
    if saved["model"] != name:
        raise SennError(f"the checkpoint is of a run that grew model={saved['model']!r}, not {name!r}")


def _optimizer(trainer: pl.Trainer, model: nn.Module) -> torch.optim.Optimizer:
    own = {*model.parameters()}
    found = [one for one in trainer.optimizers if any(p in own for group in one.param_groups for p in group["params"])]
    if len(found) != 1:
        raise SennError(f"{len(found) or 'no'} optimizers hold parameters of what is to grow, and it takes one: "
                        "name the part that one of them trains by model=...")  # fmt: skip
    return found[0]


def _samples(trainer: pl.Trainer) -> int | None:
    """Number of training samples, where the data set has one."""
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else None


def _can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None
