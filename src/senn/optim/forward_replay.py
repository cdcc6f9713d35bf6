"""A forward pass that can be run again with the same random numbers and buffers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from senn.kfac.recorder import forward
from senn.pytree import Inputs


class Replay:
    """Snapshot of random states and buffers before a forward pass.

    With it the losses before and after a step differ in the parameters alone: same dropout, same batch statistics.

    Args:
        model: that will run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        # only devices that the model is on: reading a state initializes the device
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        self._cpu = torch.get_rng_state()
        self._cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the buffers and the random states of the snapshot."""
        for buffer, value in self._buffers:
            buffer.copy_(value)
        self._seed()

    def again(self, inputs: Inputs, measure: Callable[[Tensor], float]) -> Callable[[], float]:
        """Prepare to repeat the pass and measure its outputs; buffers and random states are left as they are.

        Args:
            inputs: of the same pass.
            measure: maps the outputs to a number.

        Returns:
            A function that runs the pass and returns the number.
        """

        def run() -> float:
            # buffers go on from where the first pass left them, not from the repetition
            now = [buffer.clone() for buffer, _ in self._buffers]
            # forked, so that later draws aren't those of the repetition
            with torch.no_grad(), torch.random.fork_rng([device for device, _ in self._cuda]):
                self.restore()
                value = measure(forward(self._model, inputs))
                for (buffer, _), value_now in zip(self._buffers, now, strict=True):
                    buffer.copy_(value_now)
            return value

        return run

    def _seed(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)
