"""Graph networks: two layers of message passing of torch-geometric, and a head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wild_models.registry import Build, Models, Wild, load


class Graph(nn.Module):
    """Two layers of message passing over nodes, and a head.

    Args:
        layer: makes one from its numbers of inputs and outputs.
    """

    def __init__(self, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second, self.head = layer(4, 8), layer(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Nodes (nodes, 4) and edges (2, edges) to outputs (nodes, 3)."""
        x = torch.relu(self.first(x, edge_index))
        out: Tensor = self.head(torch.relu(self.second(x, edge_index)))
        return out


def _rings(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and edges of n rings of six nodes."""
    ring = torch.stack([torch.arange(6), torch.arange(1, 7) % 6])
    return torch.randn(6 * n, 4), torch.cat([ring + 6 * i for i in range(n)], 1)


def _graph(name: str, settings: dict[str, Any]) -> Build:
    return lambda: Graph(lambda i, o: load(f"torch_geometric.nn:{name}")(i, o, **settings))


_LAYERS: dict[str, dict[str, Any]] = {
    "GCNConv": {},
    "SAGEConv": {},
    "GraphConv": {},
    "GATv2Conv": {},
    "TAGConv": {"K": 2},
    "ChebConv": {"K": 2},
    "SGConv": {},
    "ARMAConv": {},
    "LEConv": {},
    "ResGatedGraphConv": {},
    "TransformerConv": {},
}

MODELS: Models = {
    f"torch-geometric-{name}": Wild(
        package="torch-geometric", model=_graph(name, settings), batch=_rings
    )
    for name, settings in _LAYERS.items()
}
