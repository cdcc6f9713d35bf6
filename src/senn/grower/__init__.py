"""`Grower`: scores and changes the size of a network while it trains; orchestration only."""

from senn.grower.grower import Batch, Grower
from senn.grower.pruning_frontier import frontier

__all__ = ["Batch", "Grower", "frontier"]
