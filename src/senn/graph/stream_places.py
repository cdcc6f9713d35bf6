"""Residual streams behind norms: which of them a grower can widen by units that are chosen."""

from __future__ import annotations

from senn.graph.types import ChannelGroup


def stream_refusal(group: ChannelGroup) -> str | None:
    """Say why units of a group behind norms can't be scored by the rows that write them.

    Args:
        group: with norms.

    Returns:
        One sentence, without a capital or an end; None if they can be scored.
    """
    for one in group.dims:
        if one.role == "consumer":
            continue
        if not one.behind_norm:
            return f"its units come and go with those of {one.map}, which no norm reads"
        if one.index.shape[1] > 1:
            return f"one of its units is several features of {one.map}"
        if one.gains and group.norms[0].kind == "layer":
            return f"{one.gains[0]} scales what {one.map} writes before its mean is taken off"
    if not any(one.behind_norm for one in group.dims_of("consumer")):
        return "nothing reads its units past the norm but what writes them"
    return None
