"""The text of a graph: narrow lines, one for each reason, and what a grower leaves alone."""

import pytest
import torch
from graph_nets import batch
from torch import nn

import senn
from senn.graph import DependencyGraph, Refusal, explain


def summary(*refusals: Refusal) -> list[str]:
    graph = DependencyGraph(linear_maps=(), groups=(), insertion_points=(), refusals=refusals)
    return str(explain(graph)).splitlines()


def test_many_places_that_are_refused_for_one_reason_share_a_line():
    frozen = [
        Refusal(place=f"h.{layer}.{name}1", reason="it is frozen")
        for layer in range(9)
        for name in ("query", "key")
    ]
    lines = summary(*frozen, Refusal(place="head", reason="it is last"))
    assert lines[1].split("  ") == ["h.*.query1 (9), h.*.key1 (9)", "it is frozen"]
    assert lines[2].split() == ["head", "it", "is", "last"]
    assert len(summary(*frozen[:3])) == 4


@pytest.mark.parametrize("words", [3, 40, 400])
def test_lines_are_narrow_and_nothing_is_left_out(words):
    places = ", ".join(f"blocks.{number}.attention" for number in range(words))
    reason = " ".join(f"word{number}" for number in range(words))
    lines = summary(Refusal(place=places, reason=reason))
    assert max(map(len, lines)) <= 120
    shown = "".join(lines).replace(" ", "")
    assert all(f"word{number}" in shown for number in range(words))
    assert all(f"blocks.{number}.attention" in shown for number in range(words))


def test_streams_behind_norms_are_listed_as_left_to_the_user():
    model = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Linear(4, 2))
    text = str(explain(model, batch(5, 3)))
    assert "only by hand  because" in text
    assert "new units enter 1, which normalizes over them, as zeros" in " ".join(text.split())
    grower = senn.Grower(model, samples=8, moves=("width",))
    with pytest.raises(senn.SennError, match="no place to grow"):
        grower.grow([(batch(8, 3), torch.arange(8) % 2)])
