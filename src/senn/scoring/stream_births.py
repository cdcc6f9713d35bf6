"""Steps of new units of residual streams behind norms: the rows that write them.

They are the natural steps by which the units were scored (`senn.scoring.stream_rows`), with the existing rows taking
back what they predict of the new ones, so that outputs move by what is new in these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from senn.candidates.stream_units import Writer
from senn.graph import LinearMap, get_tensor
from senn.scoring.account_steps import unit_steps_of
from senn.scoring.birth_steps import ACTION, BirthStep, ParameterEntries, birth_steps, entry_step
from senn.scoring.pool import CandidatePool
from senn.scoring.stream_rows import norm_fraction, unit_places
from senn.surgery import Receipt
from senn.surgery.reindex import NewPositions


def all_birth_steps(pool: CandidatePool, receipt: Receipt) -> list[BirthStep]:
    """Compute the steps of everything that a round has added, those of streams included.

    Args:
        pool: the round's pool, in which the additions are accepted.
        receipt: what the surgery did.

    Returns:
        The steps, at most one of which changes what a parameter has held before.
    """
    names = {id(parameter): name for name, parameter in pool.model.named_parameters()}
    found = birth_steps(pool, receipt)
    grown = {
        stream: positions
        for stream, positions in receipt.new_positions.items()
        if stream in pool.candidate_set.streams
    }
    for stream, positions in grown.items():
        factor = norm_fraction(pool.graph, stream, len(pool.grown[stream]))
        found = [_as_written(one, positions, names, factor) for one in found]
    for stream, positions in grown.items():
        for writer in pool.candidate_set.streams[stream].writers:
            found += _of_writer(pool, stream, writer, positions, names)
    return _joined(found, pool)


def ablated_entries(
    pool: CandidatePool, receipt: Receipt, steps: Sequence[BirthStep]
) -> list[ParameterEntries]:
    """Entries through which alone what was added reaches the outputs; of units of streams the columns that read them.

    Args:
        pool: the round's pool.
        receipt: what the surgery did.
        steps: steps of what was added.
    """
    streams = pool.candidate_set.streams
    found = [one.entries for one in steps if one.entries.is_new]
    found = [one for one in found if one.place not in streams]
    names = {id(parameter): name for name, parameter in pool.model.named_parameters()}
    for stream in streams:
        for one in receipt.new_positions.get(stream, ()):
            if one.coupled.role == "consumer" and id(one.tensor) in names:
                index = one.index.flatten()
                values = one.tensor.detach()
                entries = ParameterEntries(
                    kind="widen",
                    place=stream,
                    name=names[id(one.tensor)],
                    dim=one.coupled.dim,
                    index=index,
                    silent=torch.zeros_like(
                        values.index_select(one.coupled.dim, index.to(values.device))
                    ),
                )
                found.append(entries)
    return found


def _as_written(
    step: BirthStep, new: Sequence[NewPositions], names: Mapping[int, str], factor: float
) -> BirthStep:
    """Multiply what another step writes to a stream by what surgery has multiplied all that writes it."""
    entries = step.entries
    for one in new if factor != 1 else ():
        dim = one.coupled.dim
        if one.coupled.stream_power != 1 or names.get(id(one.tensor)) != entries.name:
            continue
        by_position = torch.ones(one.tensor.shape[dim], dtype=torch.float64)
        by_position[unit_places(one)] = factor
        if entries.dim == dim:
            by_position = by_position[entries.index]
        shape = [-1 if axis == dim else 1 for axis in range(step.step.dim())]
        return BirthStep(entries=entries, step=step.step * by_position.view(shape).to(step.step))
    return step


def _of_writer(
    pool: CandidatePool,
    stream: str,
    writer: Writer,
    new: Sequence[NewPositions],
    names: Mapping[int, str],
) -> Iterator[BirthStep]:
    """Steps of the rows of one map, or of the columns of a table, of new units and of existing ones."""
    chosen = torch.tensor(pool.grown[stream])

    def compute() -> list[Tensor]:
        return unit_steps_of(pool.stream.units[stream].parts[writer.name], chosen)

    owners = pool.owners
    steps = owners.communicator.broadcast_result(ACTION, owners.blocks[stream], compute)
    step, taken = (one.mT * norm_fraction(pool.graph, stream, len(chosen)) for one in steps)
    if pool.candidate_set.streams[stream].centered:
        taken = taken - step.sum(0) / len(taken)
    bias = None if writer.map is None else writer.map.bias
    for one in new:
        coupled = one.coupled
        is_bias = coupled.name == bias and bias is not None
        if not is_bias and coupled is not writer.coupled:
            continue
        for rows, index, is_new in (
            (step, one.index.flatten(), True),
            (taken, unit_places(one), False),
        ):
            values = rows[:, -1] if is_bias else _like_tensor(rows, writer, one, index)
            yield entry_step(
                one.tensor,
                values,
                names,
                kind="widen",
                place=stream,
                dim=coupled.dim,
                index=index,
                is_new=is_new,
            )


def _like_tensor(rows: Tensor, writer: Writer, one: NewPositions, index: Tensor) -> Tensor:
    """Give rows (units, c) the dimensions of the tensor that they are written to."""
    if writer.map is None:
        return rows.mT
    linear_map: LinearMap = writer.map
    shape = list(one.tensor.shape)
    shape[linear_map.out_dim] = len(index)
    order = (linear_map.out_dim, linear_map.in_dim)
    whole = rows.new_zeros(shape).movedim(order, (0, 1))
    # inputs that came in the same round have no step here
    former, now = one.kept(linear_map.in_dim)
    inputs = one.former_size(linear_map.in_dim) * linear_map.kernel_numel
    by_input = rows[:, :inputs].reshape(len(index), -1, *whole.shape[2:])
    whole[:, now] = by_input[:, former]
    return whole.movedim((0, 1), order)


def _joined(steps: Sequence[BirthStep], pool: CandidatePool) -> list[BirthStep]:
    """Join steps that overlap: a map's existing weights may take back what both its new columns and its rows bring."""
    taken: dict[str, list[BirthStep]] = {}
    for one in steps:
        if not one.entries.is_new:
            taken.setdefault(one.entries.name, []).append(one)
    several = {name: of for name, of in taken.items() if len(of) > 1}
    found = []
    for name, of in several.items():
        tensor = get_tensor(pool.model, name).detach()
        total = torch.zeros(tensor.shape, dtype=torch.float64, device=of[0].step.device)
        for one in of:
            index = one.entries.index.to(total.device)
            total.index_add_(one.entries.dim, index, one.step.double())
        entries = ParameterEntries(
            kind=of[0].entries.kind,
            place=of[0].entries.place,
            name=name,
            dim=0,
            index=torch.arange(len(tensor)),
            silent=tensor.clone(),
            is_new=False,
        )
        found.append(BirthStep(entries=entries, step=total))
    # first: new entries of these parameters are written after them
    return found + [one for one in steps if one.entries.is_new or one.entries.name not in several]
