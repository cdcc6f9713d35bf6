"""Checks of exports: what was written is read back, run, and compared with the model."""

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

# Factor on the tolerance of surgery, which is for the same kernels before and after: those of another library add up in
# another order. In float32 it allows 1e-3 of the largest output; an export that isn't the model differs by far more.
_SLACK = 100


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how it was checked; `str()` says both in one sentence.

    Attributes:
        path: the file or folder.
        reader: the library that read it back.
        samples: numbers of samples in the batches that it was run on; empty if it couldn't be run.
        difference: largest difference of its outputs from the model's, relative to the largest output; None if it
            couldn't be run.
        why_not: why it couldn't be run.
    """

    path: Path
    reader: str
    samples: tuple[int, ...] = ()
    difference: float | None = None
    why_not: str = ""

    def __str__(self) -> str:
        """Return one sentence about what was written and checked."""
        if self.difference is None:
            return f"{self.path}: written, but not checked: {self.why_not}"
        batches = " and ".join(map(str, self.samples))
        if self.difference == 0:
            comparison = "are the same to the last bit"
        else:
            comparison = f"differ by at most {self.difference:.1g} of the largest"
        return f"{self.path}: read back by {self.reader} and run on batches of {batches}; outputs {comparison}"


def check(
    path: Path,
    reader: str,
    model: nn.Module,
    inputs: Inputs,
    *,
    run: Callable[[Inputs], Sequence[Tensor]],
    exact: bool = False,
) -> Exported:
    """Run what was read back on two batches of different sizes, and compare its outputs with the model's.

    Args:
        path: the final name of what was written.
        reader: the library that read it back.
        model: the exported model.
        inputs: a batch; the other one is made of its first sample.
        run: takes a batch and returns the floating-point outputs of what was read back.
        exact: True if outputs must be equal to the last bit.

    Returns:
        What was written, with the largest difference.

    Raises:
        SennError: it can't be run, or its outputs differ from the model's.
    """
    sizes, differences = [], []
    # A second batch size shows whether an exporter has taken the first one for a constant.
    for batch in (inputs, batch_of_another_size(inputs)):
        try:
            expected = outputs(model, batch)
            with torch.no_grad():
                # A copy: a forward that writes into its inputs must not change those of the next comparison.
                found = run(pytree.clone(batch))
            change = output_change([x.cpu() for x in expected], [x.cpu() for x in found])
        except SurgeryError as error:
            raise SennError(
                f"what was exported can't be compared with the model: {error}"
            ) from error
        except Exception as error:  # the reader may raise anything
            raise SennError(
                f"{reader} can't run what was exported: {summarize_error(error)}"
            ) from error
        tolerance = 0.0 if exact else _SLACK * tolerance_for(model, expected)
        # `not <=`, so that NaN is a difference
        if not change <= tolerance:
            raise SennError(
                f"what was exported isn't the model: outputs read back by {reader} differ by {change:.1g}"
            )
        sizes.append(pytree.count(batch))
        differences.append(change)
    return Exported(path=path, reader=reader, samples=tuple(sizes), difference=max(differences))


def at_least_two(inputs: Inputs) -> Inputs:
    """Return the batch, with its sample twice if there is only one.

    torch.export takes a size of one for a constant.

    Raises:
        SennError: the batch is empty.
    """
    count = pytree.count(inputs)
    if not count:
        raise SennError("an export needs an example batch: inputs of at least one sample")
    return inputs if count > 1 else _repeated(inputs, 2)


def batch_of_another_size(inputs: Inputs) -> Inputs:
    """Return a batch that holds the first sample three times; five times if the given batch is of three."""
    # Never 1, which exporters take for a constant, nor 2, which `at_least_two` makes of one sample.
    return _repeated(pytree.head(inputs, 1), 5 if pytree.count(inputs) == 3 else 3)


def _repeated(inputs: Inputs, times: int) -> Inputs:
    count = pytree.count(inputs)
    return pytree.index_batch(inputs, torch.arange(times) % count, count)


def summarize_error(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {lines[0]}" if lines else kind
