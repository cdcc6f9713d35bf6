"""senn: networks that find their own size while they train.

Self-Expanding Neural Networks (Mitchell, Menzenbach, Kersting, Mundt, arXiv 2307.04526) in PyTorch: add neurons and
layers to a network, and prune them, while it trains, without changing its function at the moment of growth, only where
and when the natural expansion score says that the loss will fall enough to be worth it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from senn import export as export
    from senn import nn as nn
    from senn import optim as optim
    from senn import scores as scores
    from senn.batch import Arguments as Arguments
    from senn.candidates.candidate_config import CandidateConfig as CandidateConfig
    from senn.errors import SennError as SennError
    from senn.errors import SurgeryError as SurgeryError
    from senn.errors import UnsupportedError as UnsupportedError
    from senn.estimators import SENNClassifier as SENNClassifier
    from senn.estimators import SENNRegressor as SENNRegressor
    from senn.events import GrowthEvent as GrowthEvent
    from senn.grower import Grower as Grower
    from senn.persistence import load as load
    from senn.persistence import save as save
    from senn.policy import PaperPolicy as PaperPolicy
    from senn.policy import Policy as Policy
    from senn.policy import PricePolicy as PricePolicy
    from senn.verification import analyze as analyze
    from senn.verification import explain as explain

__version__ = "0.1.0"

_HOME = {
    "Arguments": "senn.batch",
    "Grower": "senn.grower",
    "GrowthEvent": "senn.events",
    "PaperPolicy": "senn.policy",
    "Policy": "senn.policy",
    "PricePolicy": "senn.policy",
    "Proposals": "senn.candidates.candidate_config",
    "SENNClassifier": "senn.estimators",
    "SENNRegressor": "senn.estimators",
    "SennError": "senn.errors",
    "SurgeryError": "senn.errors",
    "UnsupportedError": "senn.errors",
    "analyse": "senn.verification",
    "explain": "senn.verification",
    "load": "senn.persistence",
    "save": "senn.persistence",
}
_ROOMS = ("export", "nn", "optim", "scores")
_FACES = ("distributed", "lightning", "skorch", "training", "transformers")
"""Found as attributes too, but not imported by `from senn import *`: some need a library of their own."""

__all__ = [*_HOME, *_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    """Public names come from their rooms at first use, so that `import senn` costs nothing."""
    if name in (*_ROOMS, *_FACES):
        return importlib.import_module(f"senn.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'senn' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)
