"""Growth in a Hugging Face Trainer, with model and loop as they are: `Trainer(callbacks=[SelfExpansion()])`.

To every checkpoint of the Trainer are added `senn.json` and `senn.safetensors`: the sizes of the model and the state of
its growth. With this callback, `Trainer.train(resume_from_checkpoint=...)` resizes a fresh small model before the
Trainer loads its state. `save` and `load` do so for a model without a Trainer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from senn import _deprecated
from senn.checkpoint import ModuleSnapshot, optimizer_param_names, resize_like, tensor_shapes
from senn.errors import SennError
from senn.integrations import _trainer_files as files
from senn.integrations._trainer_files import load, save
from senn.integrations.loop_checks import check_single
from senn.pytree import Output, Prepare
from senn.surgery.model_config import update_config
from senn.surgery.optimizer_layers import unwrap
from senn.training.callbacks import Callback as Listener
from senn.training.growth_session import GrowthSession
from senn.training.train_config import TrainConfig

__all__ = ["SelfExpansion", "load", "save"]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    from senn.integrations._trainer_calls import check_processes, labeled, logits
except ImportError as error:
    raise SennError(
        "senn.integrations.transformers needs transformers: pip install 'senn[huggingface]'"
    ) from error

logger = logging.getLogger("senn")


@_deprecated.aliased
class SelfExpansion(TrainerCallback):
    """Grows a model while a Trainer trains it.

    Rounds come after optimizer steps, at fractions of the Trainer's `max_steps`, and score candidates on what the model
    was last called with in training: a hook on its forward, which exists only when a round is near, keeps it. The
    Trainer's optimizer is carried along, with its groups, schedule, gradient clipping, accumulation and mixed
    precision. Processes that `torchrun` or `accelerate launch` has started grow one model together, and the first one
    records it. If the loss fails on a batch, or a change fails its verification, training goes on and the failure is
    recorded.

    Numbers of the model's configuration follow where they can express the new sizes, that is where all layers have the
    same. Then `from_pretrained` loads what the Trainer saves. Where they can't, a warning says so, and `load` does.

    A Trainer that is given a `model_init` makes another model when it trains, unseen by callbacks: let that function
    return `load(checkpoint, into=...)` to go on from a grown one.

    Args:
        recipe: settings of growth; None for the defaults. `GrowthSession` lists the fields that are used.
        loss: the training loss, `loss(logits, labels)`, a mean over samples.
        prepare: makes inputs, targets and perhaps weights of the keyword arguments that the model is called with; None
            for its `labels` as targets, with which it is called in rounds too.
        samples: number of training samples, for prices; None for that of the Trainer's data set.
        ignore: names of modules that keep their sizes.
        output: finds the tensor that the loss takes in what the model returns; None for its `logits`, or what else
            there is apart from its loss.
        callbacks: listeners to the records (`senn.training.Callback`), `LoggerCallback` for one.
        resume_from: folder of the checkpoint to resume from, if it is neither in the Trainer's `output_dir` nor its
            `resume_from_checkpoint` argument.

    Attributes:
        session: the `GrowthSession`: `session.history` has all records, `session.grower` is the grower.

    Raises:
        SennError: at the start of training, if the model is taken apart (FSDP, DeepSpeed, DataParallel), or the
            optimizer doesn't hold its parameters.
    """

    def __init__(
        self,
        recipe: TrainConfig | None = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        prepare: Prepare | None = None,
        samples: int | None = None,
        ignore: Sequence[str] = (),
        output: Output | None = None,
        callbacks: Iterable[Listener] = (),
        resume_from: str | Path | None = None,
    ) -> None:
        self.session = GrowthSession(
            recipe,
            loss=loss,
            prepare=prepare or labeled,
            samples=samples,
            ignore=ignore,
            output=output or logits,
            callbacks=callbacks,
        )
        self.resume_from = resume_from
        self._hook: Any = None
        self._wrapper: Any = None
        self._config_fits, self._warned = True, False

    # -- before training

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the model take the sizes of any state that is loaded into it from now on.

        Args:
            args: arguments of the Trainer.
            state: its state.
            control: not used.
            kwargs: `model`, and more that isn't used.

        Raises:
            SennError: the Trainer has another `SelfExpansion`.
        """
        _check_single(self, state)
        model = kwargs["model"]
        snapshot = ModuleSnapshot(model)

        # The Trainer loads a checkpoint's model before it calls its callbacks, and doesn't say from which checkpoint:
        # the hook looks for one whose shapes are those of the state.
        def before_loading(
            module: nn.Module, incoming: MutableMapping[str, Tensor], *rest: Any
        ) -> None:
            if module is not model or files.fits(incoming, files.shapes_of(module)):
                return
            for folder in self._folders(args):
                saved = files.read(folder)
                if saved is None:
                    continue
                if files.fits(
                    files.renamed(incoming, saved["names"]), tensor_shapes(saved["sizes"])
                ):
                    resize_like(module, saved["sizes"], snapshot)
                    files.name_classes(module, saved.get("classes"))
                    files.rename_in_place(incoming, saved["names"])
                    return

        model.register_load_state_dict_pre_hook(before_loading)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the session, or resume it, now that everything is restored.

        Args:
            args: arguments of the Trainer.
            state: its state.
            control: not used.
            kwargs: `model`, `optimizer`, `train_dataloader`, and more that isn't used.

        Raises:
            SennError: the model is taken apart, or the optimizer doesn't hold its parameters.
        """
        check_processes(args)
        _check_single(self, state)
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        saved = self._resumed(args, state, model)
        if saved is not None:
            files.reorder_optimizer(unwrap(optimizer), model, saved["optimizer"])
            self._config_fits = update_config(model)
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        self.session.start(
            model,
            optimizer,
            steps=state.max_steps,
            samples=len(dataset) if hasattr(dataset, "__len__") else None,
            wrapper=lambda: self._wrapper,
            state=None if saved is None else saved["growth"],
        )

    # -- training

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook the model's forward, to keep what it is called with, if a round is near.

        Args:
            args: not used.
            state: state of the Trainer.
            control: not used.
            kwargs: `model`, and more that isn't used.
        """
        step = state.global_step + 1
        if self._hook is not None or not self.session.needs_batch(step):
            return
        model = kwargs["model"]

        def keep(module: nn.Module, called: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            if module is model and module.training:
                # The wrapper that calls the model, which callbacks aren't given.
                self._wrapper = DistributedDataParallel._active_ddp_module
                self.session.add_batch(dict(named), step)

        self._hook = model.register_forward_pre_hook(keep, with_kwargs=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run a round of growth if one is due.

        Args:
            args: not used.
            state: state of the Trainer.
            control: not used.
            kwargs: `model`, and more that isn't used.
        """
        # Without the hook no round is near.
        if self._hook is None:
            return
        self._unhook()
        self.session.epoch = int(state.epoch or 0) + 1
        if self.session.grow(state.global_step):
            self._config_fits = update_config(kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Complete the records at the end of training.

        Args:
            args: not used.
            state: state of the Trainer.
            control: not used.
            others: not used.
        """
        self._unhook()
        self.session.close(state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add to a checkpoint the sizes of the model, and what growth needs to go on.

        Args:
            args: arguments of the Trainer.
            state: its state.
            control: not used.
            kwargs: `model`, `optimizer`, and more that isn't used.

        Raises:
            SennError: the folder can't be written.
        """
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        folder = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        # All processes take part in the state, and one of them writes it.
        growth = {
            "step": state.global_step,
            "optimizer": optimizer_param_names(unwrap(optimizer), model),
            "growth": self.session.state_dict(),
        }
        if not args.should_save:
            return
        if not folder.is_dir():
            logger.warning(
                "the sizes of the model were not saved: there is no folder %r", str(folder)
            )
            return
        files.write(folder, model, growth)
        if not self._config_fits and not self._warned:
            self._warned = True
            logger.warning(
                "no numbers of the configuration say the sizes of this %s: load its checkpoints by "
                "senn.integrations.transformers.load",
                type(model).__name__,
            )

    # -- inside

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _folders(self, args: TrainingArguments) -> list[Path]:
        """Return where checkpoints may be: the folders named, then the Trainer's own, the last first."""
        named = [
            Path(one)
            for one in (self.resume_from, args.resume_from_checkpoint)
            if isinstance(one, str | Path)
        ]
        numbered: list[tuple[int, Path]] = []
        for folder in Path(args.output_dir or ".").glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            number = folder.name.rpartition("-")[2]
            if number.isdigit():
                numbered.append((-int(number), folder))
        return [*named, *(folder for _, folder in sorted(numbered))]

    def _resumed(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module
    ) -> Mapping[str, Any] | None:
        """Find what was saved of the run that is resumed; None for one that begins."""
        if not state.global_step:
            return None
        for folder in self._folders(args):
            saved = files.read(folder)
            if saved is None or saved.get("step") != state.global_step or "growth" not in saved:
                continue
            if tensor_shapes(saved["sizes"]) == files.shapes_of(model):
                return saved
        logger.warning(
            "nothing says how the network grew up to step %d: its growth begins anew",
            state.global_step,
        )
        return None


def _check_single(one: SelfExpansion, state: TrainerState) -> None:
    # A Trainer doesn't show its callbacks to each other, but they share its state, which is made anew for each run.
    check_single({one, vars(state).setdefault("senn", one)}, SelfExpansion)
