"""Growth in a Hugging Face Trainer, with model and loop as they are: `Trainer(callbacks=[SelfExpansion()])`.

Beside every checkpoint of the Trainer lie `senn.json` and `senn.safetensors`: the sizes of the model and what growth
needs to go on. With this callback, `Trainer.train(resume_from_checkpoint=...)` makes a fresh small model what it was
before the Trainer loads its state. `save` and `load` do it for a model without a Trainer.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from senn import _deprecated, atomic_files
from senn.checkpoint import (
    ModuleSnapshot,
    describe_shapes,
    optimizer_param_names,
    rebind_optimizer,
    resize_like,
    tensor_shapes,
)
from senn.checkpoint.model_config import update_config
from senn.checkpoint.model_state import packed, unpacked
from senn.errors import SennError
from senn.integrations.loop_checks import check_single, refuse_strategy
from senn.pytree import Output, prediction
from senn.surgery.optimizer_state import unwrap
from senn.training.callbacks import Callback as Listener
from senn.training.growth_session import GrowthSession, Prepare
from senn.training.train_config import TrainConfig

__all__ = [
    "SelfExpansion",
    "load",
    "save",
]

if not TYPE_CHECKING:
    __getattr__ = _deprecated.old_names(__name__)


try:
    import safetensors.torch
    from accelerate.state import PartialState  # type: ignore[import-untyped]
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise SennError("senn.integrations.transformers needs transformers: pip install 'senn[huggingface]'") from error

SIZES, TENSORS = "senn.json", "senn.safetensors"
FORMAT, VERSION = "senn-growth", 1

logger = logging.getLogger("senn")


class SelfExpansion(TrainerCallback):
    """Grows a model while a Trainer trains it.

    Rounds come after optimizer steps, at fractions of the Trainer's `max_steps`, and look at what the model was last
    called with in training: a hook on its forward, which is there only when a round is near, keeps it. The Trainer's
    optimizer goes along, with its groups, schedule, gradient clipping, accumulation and mixed precision. Processes that
    `torchrun` or `accelerate launch` has started grow one model together, and the first one records it. Where the loss
    fails on a batch, or a change fails its verification, training goes on, and that is recorded.

    Numbers of the model's configuration follow where they can say the new sizes: where all layers have the same. Then
    `from_pretrained` loads what the Trainer saves. Where they can't, a warning says so, and `load` does.

    A Trainer that is given a `model_init` makes another model when it trains, unseen by callbacks: have that function
    return `load(checkpoint, into=...)` to go on from a grown one.

    Args:
        recipe: when, by how much, and what is looked at, see `GrowthSession`.
        loss: the training loss, `loss(logits, labels)`, a mean over samples.
        prepare: makes inputs, targets and perhaps weights of the keyword arguments that the model is called with; by
            default the targets are its `labels`, which it is called with in rounds too.
        samples: number of training samples, for prices; by default that of the Trainer's data set.
        ignore: names of modules to leave alone.
        output: finds, in what the model returns, the tensor that the loss takes; by default its `logits`, or what
            else there is beside its loss.
        callbacks: told of every event (`senn.training.Callback`), `LoggerCallback` for one.
        resume_from: folder of the checkpoint to go on from, where it is neither in the Trainer's `output_dir` nor its
            `resume_from_checkpoint` argument.

    Attributes:
        session: what grows the model: `session.history` has all records, `session.grower` the grower.

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
            recipe, loss=loss, prepare=prepare or labeled, samples=samples, ignore=ignore, output=output or logits,
            callbacks=callbacks,
        )  # fmt: skip
        self.resume_from = resume_from
        self._hook: Any = None
        self._wrapper: Any = None
        self._says, self._warned = True, False

    # -- before training

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A state that is loaded into the model finds its sizes from now on."""
        _check_single(self, state)
        model = kwargs["model"]
        parts = ModuleSnapshot(model)

        # The Trainer loads a checkpoint's model before it tells callbacks of it, and doesn't say which checkpoint.
        def before_loading(module: nn.Module, incoming: MutableMapping[str, Tensor], *rest: Any) -> None:
            if module is not model or _fits(incoming, _shapes(module)):
                return
            for folder in self._folders(args):
                saved = _read(folder)
                if saved is not None and _fits(_renamed(incoming, saved["names"]), tensor_shapes(saved["sizes"])):
                    resize_like(module, saved["sizes"], parts)
                    _rename(incoming, saved["names"])
                    return

        model.register_load_state_dict_pre_hook(before_loading)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Everything is restored: growth begins, or goes on."""
        _check_processes(args)
        _check_single(self, state)
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        saved = self._resumed(args, state, model)
        if saved is not None:
            _reassign(unwrap(optimizer), model, saved["optimizer"])
            self._says = update_config(model)
        dataset: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        self.session.start(
            model, optimizer, steps=state.max_steps, samples=len(dataset) if hasattr(dataset, "__len__") else None,
            wrapper=lambda: self._wrapper, state=None if saved is None else saved["growth"],
        )  # fmt: skip

    # -- training

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep what the model is called with, if a round is near."""
        if self._hook is None and self.session.needs_batch(state.global_step + 1):
            model = kwargs["model"]

            def keep(module: nn.Module, called: tuple[Any, ...], named: Mapping[str, Any]) -> None:
                if module is model and module.training:
                    self._wrapper = DistributedDataParallel._active_ddp_module  # that calls it
                    self.session.add_batch(dict(named), state.global_step + 1)

            self._hook = model.register_forward_pre_hook(keep, with_kwargs=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Grow if a round is due."""
        if self._hook is None:
            return
        self._unhook()
        self.session.epoch = int(state.epoch or 0) + 1
        if self.session.grow(state.global_step):
            self._says = update_config(kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Tell how it ended."""
        self._unhook()
        self.session.close(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put what is needed to go on beside what the Trainer saved."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        folder = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        growth = {"optimizer": optimizer_param_names(unwrap(optimizer), model), "growth": self.session.state_dict()}
        if not args.should_save:  # of several processes one does
            return
        if not folder.is_dir():
            logger.warning("the sizes of the model were not saved: there is no folder %r", str(folder))
            return
        _write(folder, model, {"step": state.global_step, **growth})
        if not self._says and not self._warned:
            self._warned = True
            logger.warning(
                "no numbers of the configuration say the sizes of this %s: load its checkpoints by "
                "senn.integrations.transformers.load", type(model).__name__,
            )  # fmt: skip

    @property
    def companion(self) -> GrowthSession:
        """The old name of `session`."""
        warnings.warn("companion is now session; the old name goes in 0.3.0", DeprecationWarning, stacklevel=2)
        return self.session

    # -- inside

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _folders(self, args: TrainingArguments) -> list[Path]:
        """Where checkpoints may be: those named, then the Trainer's own, the last first."""
        named = [Path(one) for one in (self.resume_from, args.resume_from_checkpoint) if isinstance(one, str | Path)]
        own = Path(args.output_dir or ".").glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        numbered = [one for one in own if one.name.rpartition("-")[2].isdigit()]
        return [*named, *sorted(numbered, key=lambda one: -int(one.name.rpartition("-")[2]))]

    def _resumed(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> Mapping[str, Any] | None:
        """What was saved of the run that goes on; None for one that begins."""
        if not state.global_step:
            return None
        for folder in self._folders(args):
            saved = _read(folder)
            is_it = saved is not None and saved.get("step") == state.global_step and "growth" in saved
            if saved is not None and is_it and tensor_shapes(saved["sizes"]) == _shapes(model):
                return saved
        logger.warning("nothing says how the network grew up to step %d: its growth begins anew", state.global_step)
        return None


def labeled(called: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Inputs and targets, of the keyword arguments that a model is called with.

    The labels are among the inputs too: some models can't do without, since they compute a loss always, or make of
    them what their decoder reads.

    Raises:
        SennError: there are no `labels` among them.
    """
    inputs = {name: value for name, value in called.items() if name != "num_items_in_batch"}
    if called.get("labels") is None:
        raise SennError(
            "the model isn't called with labels, as under label smoothing or a loss function of the Trainer's: "
            "say by prepare=... what the targets are"
        )
    return inputs, called["labels"]


def logits(result: Any) -> Tensor:
    """The tensor that the loss takes, in what a model called with labels returns: `logits`, or all but the loss.

    Raises:
        UnsupportedError: it isn't clear which tensor is meant.
    """
    if isinstance(result, Mapping) and "logits" not in result:
        result = {name: value for name, value in result.items() if name != "loss"}
    elif type(result) is tuple and len(result) > 1 and isinstance(result[0], Tensor) and not result[0].dim():
        result = result[1]
    return prediction(result)


def save(model: nn.Module, folder: str | Path) -> None:
    """`model.save_pretrained(folder)`, and beside it what `load` needs.

    Raises:
        SennError: the folder can't be written.
    """
    model.save_pretrained(folder)  # type: ignore[operator]
    _write(Path(folder), model, {})


def load(folder: str | Path, into: nn.Module) -> Any:
    """Make a fresh model what was saved by `save`, or by a Trainer with `SelfExpansion`.

    Args:
        folder: of the model or checkpoint.
        into: of the same class, of any size; changed in place.

    Returns:
        That model.

    Raises:
        SennError: the folder holds no sizes, those of another model, or no `model.safetensors`.
    """
    saved, path = _read(Path(folder)), Path(folder) / "model.safetensors"
    if saved is None or not path.is_file():
        raise SennError(f"{str(folder)!r} doesn't hold both {SIZES} and {path.name}")
    resize_like(into, saved["sizes"])
    state = safetensors.torch.load_file(path)
    _rename(state, saved["names"])
    into.load_state_dict(state, strict=False)
    update_config(into)
    return into


# -- inside


def _check_processes(args: TrainingArguments) -> None:
    """Refuse what takes a model apart."""
    if args.n_gpu > 1:
        refuse_strategy("DataParallel")
    how = PartialState().distributed_type.value
    if how != "NO" and not how.startswith("MULTI_"):
        refuse_strategy(how)


def _check_single(one: SelfExpansion, state: TrainerState) -> None:
    """A Trainer doesn't show its callbacks to each other; its state, which it makes anew for each run, is theirs."""
    check_single({one, vars(state).setdefault("senn", one)}, SelfExpansion)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _fits(incoming: Mapping[str, Tensor], known: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a state is that of a model of these shapes; tied tensors are in it once."""
    return all(known.get(name) == tuple(tensor.shape) for name, tensor in incoming.items())


def _reassign(optimizer: torch.optim.Optimizer, model: nn.Module, names: Sequence[Sequence[str | None]]) -> None:
    """Give every parameter its own state, where an optimizer was loaded by position and stood in another order."""
    if optimizer_param_names(optimizer, model) == names:
        return
    states = [[optimizer.state.get(one) for one in group["params"]] for group in optimizer.param_groups]
    rebind_optimizer(optimizer, model, names)
    for group, own in zip(optimizer.param_groups, states, strict=True):
        for parameter, state in zip(group["params"], own, strict=True):
            if state is not None:
                optimizer.state[parameter] = state


def _names(model: Any) -> dict[str, str]:
    """Names of tensors by those under which `save_pretrained` writes them: of some classes, as older versions had them.

    Its Trainer loads a checkpoint without giving them their names again.
    """
    own = model.state_dict()
    try:
        from transformers.core_model_loading import revert_weight_conversion

        saved = revert_weight_conversion(model, own)
    except (ImportError, AttributeError):  # another version, or a model that isn't of transformers
        return {}
    known = {id(tensor): name for name, tensor in own.items()}
    pairs = ((name, known.get(id(tensor), name)) for name, tensor in saved.items())
    return {name: own_name for name, own_name in pairs if name != own_name}


def _renamed(incoming: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {names.get(name, name): tensor for name, tensor in incoming.items()}


def _rename(incoming: MutableMapping[str, Tensor], names: Mapping[str, str]) -> None:
    renamed = _renamed(incoming, names)
    incoming.clear()
    incoming.update(renamed)


def _write(folder: Path, model: nn.Module, growth: Mapping[str, Any]) -> None:
    document, data = packed({"sizes": describe_shapes(model), "names": _names(model), **growth})
    head = {"format": FORMAT, "version": VERSION, "numbers": atomic_files.file_digest(data)}
    try:
        atomic_files.write(folder / TENSORS, data)
        atomic_files.write(folder / SIZES, atomic_files.to_checksummed_json({**head, "state": document}, indent=None))
    except OSError as error:
        raise SennError(f"{str(folder)!r} can't be written: {error.strerror or error}") from error


def _read(folder: Path) -> Mapping[str, Any] | None:
    """What was written beside a model; None if nothing was.

    Raises:
        SennError: it was altered.
    """
    if not (folder / SIZES).is_file():
        return None
    document, path = atomic_files.read_checksummed_json(folder / SIZES, FORMAT, VERSION), folder / TENSORS
    data = atomic_files.verify_file(path, document.get("numbers"), 1 << 40, SIZES)
    state: Mapping[str, Any] = unpacked(document["state"], data, path)
    return state
