"""senn: networks that find their own size while they train.

Self-Expanding Neural Networks (Mitchell, Menzenbach, Kersting, Mundt, arXiv 2307.04526) in PyTorch: add neurons and
layers to a network, and prune them, while it trains, without changing its function at the moment of growth, only where
and when the natural expansion score says that the loss will fall enough to be worth it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from senn import _deprecated

if TYPE_CHECKING:
    from senn import export as export
    from senn import graph as graph
    from senn import nn as nn
    from senn import optim as optim
    from senn import training as training
    from senn.candidates.candidate_config import CandidateConfig as CandidateConfig
    from senn.checkpoint import load as load
    from senn.checkpoint import save as save
    from senn.errors import SennError as SennError
    from senn.errors import SurgeryError as SurgeryError
    from senn.errors import UnsupportedError as UnsupportedError
    from senn.events import Frontier as Frontier
    from senn.events import GrowthEvent as GrowthEvent
    from senn.grower import Grower as Grower
    from senn.grower import frontier as frontier
    from senn.integrations.sklearn import SENNClassifier as SENNClassifier
    from senn.integrations.sklearn import SENNRegressor as SENNRegressor
    from senn.policies import PaperPolicy as PaperPolicy
    from senn.policies import Policy as Policy
    from senn.policies import PricePolicy as PricePolicy
    from senn.pytree import Arguments as Arguments
    from senn.scoring.round_config import RoundConfig as RoundConfig
    from senn.surgery.grown_outputs import add_outputs as add_outputs
    from senn.surgery.grown_outputs import resize_token_embeddings as resize_token_embeddings
    from senn.training.trained_run import TrainedRun as TrainedRun
    from senn.training.trained_run import load_run as load_run
    from senn.verification.analysis import analyze as analyze
    from senn.verification.analysis import explain as explain

__version__ = "0.2.0"

_HOME = {
    "Arguments": "senn.pytree",
    "CandidateConfig": "senn.candidates.candidate_config",
    "Frontier": "senn.events",
    "Grower": "senn.grower",
    "GrowthEvent": "senn.events",
    "PaperPolicy": "senn.policies",
    "Policy": "senn.policies",
    "PricePolicy": "senn.policies",
    "RoundConfig": "senn.scoring.round_config",
    "SENNClassifier": "senn.integrations.sklearn",
    "SENNRegressor": "senn.integrations.sklearn",
    "SennError": "senn.errors",
    "SurgeryError": "senn.errors",
    "TrainedRun": "senn.training.trained_run",
    "UnsupportedError": "senn.errors",
    "add_outputs": "senn.surgery.grown_outputs",
    "analyze": "senn.verification",
    "explain": "senn.verification",
    "frontier": "senn.grower",
    "load": "senn.checkpoint",
    "load_run": "senn.training.trained_run",
    "resize_token_embeddings": "senn.surgery.grown_outputs",
    "save": "senn.checkpoint",
}
_EXTRAS = {
    "SENNClassifier": "sklearn",
    "SENNRegressor": "sklearn",
    "TrainedRun": "cli",
    "load_run": "cli",
}
"""Extras that names need."""

_PACKAGES = ("export", "graph", "nn", "optim")
_OPTIONAL = ("distributed", "integrations", "surgery", "training")
"""Packages found as attributes too, but not imported by `from senn import *`: some need another library."""

__all__ = [*_HOME, *_PACKAGES, "__version__"]

_deprecated.install()


def __getattr__(name: str) -> Any:
    """Import public names at first use, so that `import senn` costs nothing."""
    if name in (*_PACKAGES, *_OPTIONAL):
        return importlib.import_module(f"senn.{name}")
    if name in _EXTRAS:
        from senn._extras import importing

        with importing(f"senn.{name}", _EXTRAS[name]):
            return getattr(importlib.import_module(_HOME[name]), name)
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    return _deprecated.lookup("senn", name)


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)
