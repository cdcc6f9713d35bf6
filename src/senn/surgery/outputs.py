"""Looking at a model before and after a change, without disturbing it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from senn import pytree
from senn.errors import SurgeryError
from senn.preserve import preserve_model_state
from senn.pytree import Inputs
from senn.surgery.undo import UndoLog

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Largest change of the outputs, relative to the largest output, by the coarsest dtype in play."""

FLOOR = 1e-6
"""Outputs smaller than this are compared on this scale."""


def outputs(model: nn.Module, probe: Inputs) -> list[Tensor]:
    """The floating-point tensors that the model returns for the probe.

    Raises:
        SurgeryError: some of them are not finite.
    """
    with torch.no_grad(), preserve_model_state(model):
        result = pytree.call(model, pytree.clone(probe))
    leaves = [x for x in pytree.tensor_leaves(result) if x.is_floating_point()]
    if not all(leaf.isfinite().all() for leaf in leaves):
        raise SurgeryError("the outputs on the probe batch are not finite")
    return leaves


def output_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest |after - before| / max |before| of all outputs."""
    if [x.shape for x in before] != [x.shape for x in after]:
        raise SurgeryError("the outputs on the probe batch changed their shapes")
    changes = [
        float((new.double() - old.double()).abs().max() / old.double().abs().max().clamp(min=FLOOR))
        for old, new in zip(before, after, strict=True)
        if old.numel()
    ]
    return max(changes, default=0.0)


def tolerance_for(model: nn.Module, before: Sequence[Tensor]) -> float:
    """The tolerance that the coarsest floating-point dtype among parameters and outputs asks for."""
    tensors = itertools.chain(model.parameters(), before)
    return max(
        (TOLERANCE.get(x.dtype, 2e-2) for x in tensors if x.is_floating_point()), default=TOLERANCE[torch.float32]
    )


@torch.no_grad()
def calibrate_batch_norm(model: nn.Module, journal: UndoLog, probe: Inputs) -> None:
    """Give new BatchNorm channels the running statistics of the probe batch; old channels stay as they are."""
    if not journal.uncalibrated:
        return

    written: list[tuple[Tensor, Tensor, Tensor]] = []

    def hook(places: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def set_statistics(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            channels = args[0].movedim(1, 0).flatten(1)[places.to(args[0].device)].double()
            if channels.shape[1] > 1:  # one value has no variance
                for buffer, statistic in (
                    (module.running_mean, channels.mean(1)),
                    (module.running_var, channels.var(1)),
                ):
                    assert isinstance(buffer, Tensor)
                    buffer[places] = statistic.to(buffer.dtype)
                    written.append((buffer, places, buffer[places]))

        return set_statistics

    handles = [module.register_forward_pre_hook(hook(places)) for module, places in journal.uncalibrated]
    try:
        outputs(model, probe)
    finally:
        for handle in handles:
            handle.remove()
    # Later normalisations read what earlier ones give, so statistics are set during the pass, which puts buffers back.
    for buffer, places, statistic in written:
        buffer[places] = statistic


def check_use(model: nn.Module, journal: UndoLog, probe: Inputs) -> None:
    """Check that the forward pass runs every inserted layer.

    It takes a pass of its own: hooks turn the fast paths of fused layers off, and outputs are compared with these on.
    """
    used: set[nn.Module] = set()
    handles = [
        inserted.modules[0].register_forward_pre_hook(lambda module, _: used.add(module))
        for inserted in journal.inserted
    ]
    try:
        if handles:
            outputs(model, probe)
    finally:
        for handle in handles:
            handle.remove()
    for inserted in journal.inserted:
        if inserted.modules[0] not in used:
            raise SurgeryError(f"the forward pass doesn't run the layer {inserted.what}")


def model_digest(tensors: Sequence[Tensor]) -> list[int]:
    """One integer per tensor that changes with its bits, also where autograd counts no version (fused kernels)."""
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [
        int((torch.view_as_real(x) if x.is_complex() else x).detach().view(views[_item(x)]).sum(dtype=torch.int64))
        for x in tensors
    ]


def _item(tensor: Tensor) -> int:
    return tensor.element_size() // (2 if tensor.is_complex() else 1)
