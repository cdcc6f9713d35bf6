"""What was exported, held against the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from senn import pytree
from senn.errors import SennError, SurgeryError
from senn.pytree import Inputs
from senn.surgery.outputs import output_change, outputs, tolerance_for

# Kernels of other libraries add up in another order.
_SLACK = 100


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how far it was checked; as text, one sentence on that.

    Attributes:
        path: file or folder.
        reader: what read it back.
        samples: numbers of examples in the batches that it was run on; empty if it couldn't be.
        difference: the largest one of its outputs, relative to the largest output; None if it couldn't be run.
        why_not: why it couldn't.
    """

    path: Path
    reader: str
    samples: tuple[int, ...] = ()
    difference: float | None = None
    why_not: str = ""

    def __str__(self) -> str:
        """One sentence."""
        if self.difference is None:
            return f"{self.path}: written, but not checked: {self.why_not}"
        batches = " and ".join(map(str, self.samples))
        same = self.difference == 0
        how = "are the same to the last bit" if same else f"differ by at most {self.difference:.1g} of the largest"
        return f"{self.path}: read back by {self.reader} and run on batches of {batches}; outputs {how}"


def check(
    path: Path,
    reader: str,
    model: nn.Module,
    inputs: Inputs,
    run: Callable[[Inputs], Sequence[Tensor]],
    *,
    exact: bool = False,
) -> Exported:
    """Run what was read back on the inputs, and on a batch of another size, and compare.

    Args:
        path: what it is called.
        reader: what read it back.
        model: what it was made of.
        inputs: for both.
        run: gives the floating-point outputs of what was read back.
        exact: whether it has to be the same to the last bit.

    Raises:
        SennError: it fails, or its outputs are others.
    """
    sizes, differences = [], []
    for part in (inputs, another(inputs)):
        try:
            expected = outputs(model, part)
            with torch.no_grad():
                found = run(pytree.clone(part))
            change = output_change([x.cpu() for x in expected], [x.cpu() for x in found])
        except SurgeryError as error:
            raise SennError(f"what was exported can't be compared with the model: {error}") from error
        except Exception as error:
            raise SennError(f"{reader} can't run what was exported: {in_short(error)}") from error
        limit = 0.0 if exact else _SLACK * tolerance_for(model, expected)
        if not change <= limit:
            raise SennError(f"what was exported isn't the model: outputs read back by {reader} differ by {change:.1g}")
        sizes.append(pytree.count(part))
        differences.append(change)
    return Exported(path=path, reader=reader, samples=tuple(sizes), difference=max(differences))


def several(inputs: Inputs) -> Inputs:
    """The inputs, of two samples if there is only one: PyTorch takes a size of one for a constant.

    Raises:
        SennError: there is none.
    """
    count = pytree.count(inputs)
    if not count:
        raise SennError("an export needs an example batch: inputs of at least one sample")
    return inputs if count > 1 else _repeated(inputs, 2)


def another(inputs: Inputs) -> Inputs:
    """A batch of another size: three times the first sample."""
    return _repeated(pytree.head(inputs, 1), 5 if pytree.count(inputs) == 3 else 3)


def _repeated(inputs: Inputs, times: int) -> Inputs:
    count = pytree.count(inputs)
    return pytree.index_batch(inputs, torch.arange(times) % count, count)


def in_short(error: BaseException) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
