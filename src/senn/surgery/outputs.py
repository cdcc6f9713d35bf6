"""Comparison of a model's outputs before and after a change, and calibration of new BatchNorm channels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from senn import pytree
from senn.compilation import WatchMode
from senn.errors import SurgeryError
from senn.graph.forward_passes import ForwardPass
from senn.preserve import preserve_model_state
from senn.pytree import Inputs
from senn.surgery.undo import UndoLog

# Well above what rounding explains: a widened layer sums its products in another order, and the difference grows with
# depth. Much smaller limits refuse honest changes of deep networks; much larger ones let a small wrong column pass.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Largest change of the outputs, relative to the largest output, by the coarsest dtype in play."""

FLOOR = 1e-6
"""Scale on which outputs are compared that are smaller than this: a network may start with outputs of zero."""


def outputs(model: nn.Module, probe: Inputs) -> list[Tensor]:
    """Run a model in eval mode and return the floating-point tensors of its outputs.

    Args:
        model: it is left as it was.
        probe: what its forward takes.

    Raises:
        SurgeryError: some of the outputs are not finite.
    """
    with torch.no_grad(), preserve_model_state(model):
        result = pytree.call(model, pytree.clone(probe))  # a forward may write to its inputs
    leaves = [leaf for leaf in pytree.tensor_leaves(result) if leaf.is_floating_point()]
    if not all(leaf.isfinite().all() for leaf in leaves):
        raise SurgeryError("the outputs on the probe batch are not finite")
    return leaves


def output_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest of max |after - before| / max |before| over all outputs.

    Args:
        before: outputs of a model.
        after: outputs of the changed model on the same inputs.

    Raises:
        SurgeryError: the outputs changed their shapes.
    """
    if [leaf.shape for leaf in before] != [leaf.shape for leaf in after]:
        raise SurgeryError("the outputs on the probe batch changed their shapes")
    changes = [0.0]
    for old, new in zip(before, after, strict=True):
        if old.numel():
            # Relative to the largest entry of the tensor: single outputs near zero have no relative precision.
            scale = old.double().abs().max().clamp(min=FLOOR)
            change = (new.double() - old.double()).abs().max()
            changes.append(float(change / scale))
    return max(changes)


def former_outputs(before: Sequence[Tensor], after: Sequence[Tensor], new: int) -> list[Tensor]:
    """Return what of a changed model's outputs there was before, to be compared.

    Args:
        before: outputs of the model.
        after: outputs of the changed model on the same inputs.
        new: by how many entries outputs have grown, at the end of one dimension; 0 where none may have.

    Returns:
        The former entries of outputs that have grown, and all others as they are. A single number is that of before
        where outputs have grown: a loss, which counts all classes.
    """
    if not new or len(before) != len(after):
        return [*after]
    found = []
    for old, one in zip(before, after, strict=True):
        sizes = [*zip(old.shape, one.shape, strict=False)]
        grown = [dim for dim, (was, now) in enumerate(sizes) if now == was + new]
        same = sum(was == now for was, now in sizes)
        if not old.dim() and not one.dim():
            one = old
        elif old.dim() == one.dim() and len(grown) == 1 and same == len(sizes) - 1:
            one = one.narrow(grown[0], 0, old.shape[grown[0]])
        found.append(one)
    return found


def tolerance_for(model: nn.Module, before: Sequence[Tensor]) -> float:
    """Return the tolerance for the coarsest floating-point dtype among parameters and outputs.

    Args:
        model: its parameters count: outputs of mixed precision are as coarse as the coarsest step on the way.
        before: its outputs.
    """
    tensors = itertools.chain(model.parameters(), before)
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return tolerance_of(dtypes)


def tolerance_of(dtypes: Iterable[torch.dtype]) -> float:
    """Return the tolerance for the coarsest of some dtypes."""
    # An unlisted dtype (float8) is as coarse as the coarsest listed one, at least.
    return max((TOLERANCE.get(dtype, 2e-2) for dtype in dtypes), default=TOLERANCE[torch.float32])


def dtypes_in_pass(model: nn.Module, one: ForwardPass) -> set[torch.dtype]:
    """Return the floating-point dtypes that a forward pass computes in.

    Args:
        model: it is left as it was.
        one: how it is run.
    """
    watch = _Dtypes()
    with torch.no_grad(), preserve_model_state(model, training=one.training), watch:
        pytree.call(model, pytree.clone(one.inputs))
    return watch.seen


class _Dtypes(WatchMode):
    """Collects the floating-point dtypes of all results, but for single numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 1:
                self.seen.add(leaf.dtype)
        return result


@torch.no_grad()
def calibrate_batch_norm(model: nn.Module, log: UndoLog, probe: Inputs) -> None:
    """Set the running statistics of new BatchNorm channels to those of a batch; old channels stay as they are.

    Args:
        model: the changed model.
        log: of the change, which names the channels.
        probe: what the model's forward takes.

    Raises:
        SurgeryError: the outputs on the batch are not finite.
    """
    if not log.uncalibrated:
        return
    written: list[tuple[Tensor, Tensor, Tensor]] = []

    def hook(places: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def set_statistics(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            by_channel = args[0].movedim(1, 0).flatten(1)
            channels = by_channel[places.to(by_channel.device)].double()
            if channels.shape[1] < 2:  # one value has no variance
                return
            statistics = {"running_mean": channels.mean(1), "running_var": channels.var(1)}
            for name, statistic in statistics.items():
                buffer = module.get_buffer(name)
                buffer[places] = statistic.to(buffer.dtype)
                written.append((buffer, places, buffer[places]))

        return set_statistics

    handles = [
        module.register_forward_pre_hook(hook(places)) for module, places in log.uncalibrated
    ]
    try:
        outputs(model, probe)
    finally:
        for handle in handles:
            handle.remove()
    # Statistics are written during the pass, since later normalizations read what earlier ones give; and once more
    # after it, because `outputs` restores all buffers.
    for buffer, places, statistic in written:
        buffer[places] = statistic


def check_use(model: nn.Module, log: UndoLog, probe: Inputs) -> None:
    """Check that the forward pass runs every inserted layer.

    Args:
        model: the changed model.
        log: of the change, which names the layers.
        probe: what the model's forward takes.

    Raises:
        SurgeryError: it doesn't run one of them.
    """
    if not log.inserted:
        return
    used: set[nn.Module] = set()
    first = [inserted.modules[0] for inserted in log.inserted]
    # Not in the pass whose outputs are compared: hooks turn off the fast paths of fused layers, which read weights
    # directly, and it is with these on that the outputs have to be the same.
    handles = [module.register_forward_pre_hook(lambda one, _: used.add(one)) for module in first]
    try:
        outputs(model, probe)
    finally:
        for handle in handles:
            handle.remove()
    for inserted in log.inserted:
        if inserted.modules[0] not in used:
            raise SurgeryError(f"the forward pass doesn't run the layer {inserted.what}")


def model_digest(tensors: Sequence[Tensor]) -> list[int]:
    """Return one integer per tensor that changes with its bits.

    The sum of the bits read as integers is exact and costs one read; versions, which are free, aren't counted by fused
    kernels.
    """
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digests = []
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        bits = real.detach().view(views[real.element_size()])
        digests.append(int(bits.sum(dtype=torch.int64)))
    return digests
