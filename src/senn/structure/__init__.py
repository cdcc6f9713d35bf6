"""What in a model can change size: spaces (hidden dimensions) and sites (places for a new layer)."""

from senn.structure.analysis import analyse
from senn.structure.explain import explain
from senn.structure.spaces import Refusal, Site, Slot, Space, Structure, linear_map

__all__ = ["Refusal", "Site", "Slot", "Space", "Structure", "analyse", "explain", "linear_map"]
