"""Example inputs of the calls that a model gets: one for each structure of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as tree

from senn import pytree
from senn.collectives import Communicator
from senn.graph.forward_passes import ForwardPass
from senn.graph.model_copy import copy_model
from senn.pytree import Inputs
from senn.scoring.global_batch import first_inputs

_FEW = 4
"""Samples that show a model's paths: more than one, which batch norm can't train on."""


class ExampleInputs:
    """A few samples of each kind of inputs that a model has got.

    A mask, a cache or a flag can send a forward pass along another path, so a batch with another structure is another
    example. Sizes of tensors are no part of it: they vary from batch to batch.

    Args:
        given: inputs of other calls, which the user names.

    Attributes:
        are_whole: True if the model takes batches as a whole only, as a graph with the edges between its nodes.
    """

    def __init__(self, given: Iterable[Inputs] = ()) -> None:
        self._given = [*given]
        self.are_whole = False
        self._by_structure: dict[Any, Inputs] = {}

    def __iter__(self) -> Iterator[Inputs]:
        """Those of batches first: scoring runs the model as the first one does."""
        return iter([*self._by_structure.values(), *self._given])

    def note(
        self, communicator: Communicator, model: nn.Module, inputs: Inputs, count: int
    ) -> bool:
        """Keep a few samples of a batch if its structure is new.

        Args:
            communicator: the processes, all of which take part.
            model: the model, which shows whether a batch can be cut into samples.
            inputs: this rank's inputs.
            count: number of this rank's samples.

        Returns:
            True if it was new.
        """
        structure = structure_of(inputs)
        # All ranks must analyze together, also where only one of them sees something new.
        is_new = structure not in self._by_structure
        if not any(communicator.all_gather_object("observe a batch", is_new)):
            return False
        few = first_inputs(communicator, inputs, count)
        if communicator.is_single and not _runs(model, few):
            # Edges name nodes that a cut has taken away. If all of them fail as well, the analysis says how.
            few = inputs
            self.are_whole = _runs(model, inputs)
        self._by_structure[structure] = pytree.clone(few)
        return True


def few_samples(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return a few samples of a batch; all of them where the model takes batches as a whole only.

    Args:
        model: it is left as it was.
        inputs: the batch.
    """
    few = pytree.head(inputs, _FEW)
    return few if _runs(model, few) else inputs


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        # A copy, since a forward pass that rewrites weights hasn't been noted yet.
        ForwardPass(inputs=inputs).run(copy_model(model))
    except Exception:
        return False
    return True


def structure_of(inputs: Inputs) -> Any:
    """Return what tells two kinds of inputs apart: nesting, dtypes and ranks of tensors, flags and names.

    Args:
        inputs: of one call.
    """
    args, kwargs = pytree.arguments(inputs)
    leaves, nesting = tree.tree_flatten((list(args), dict(sorted(kwargs.items()))))
    return str(nesting), tuple(_kind(leaf) for leaf in leaves)


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return str(leaf.dtype), leaf.dim()
    # Numbers may count steps: only what can be a switch is told apart.
    switch = leaf is None or isinstance(leaf, bool | str)
    return repr(leaf) if switch else type(leaf).__name__
