"""Public names of version 0.1, each with its new one: they work, with a `DeprecationWarning`, until `GONE_IN`.

This file holds the whole list and makes all aliases: modules by an import finder, functions and classes by a module's
`__getattr__`, attributes and methods by properties, keywords by a wrapper. British spellings of public names
(`SPELLINGS`) stay without a warning.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from senn.errors import SennError

GONE_IN = "0.3.0"

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

# Old module -> where its names live now.
MODULES = {
    "senn.structure": "senn.graph",
    "senn.curvature": "senn.kfac",
    "senn.curvature.factors": "senn.kfac.factors",
    "senn.curvature.output": "senn.kfac.loss_metric",
    "senn.scores": "senn.scoring.formulas",
    "senn.drawn": "senn.html",
    "senn.policy": "senn.policies",
    "senn.proposals": "senn.candidates.candidate_config",
    "senn.persistence": "senn.checkpoint",
    "senn.ranks": "senn.collectives",
    "senn.plots": "senn.viz.plots",
    "senn.report": "senn.viz.report",
    "senn.estimators": "senn.integrations.sklearn",
    "senn.lightning": "senn.integrations.lightning",
    "senn.transformers": "senn.integrations.transformers",
    "senn.skorch": "senn.integrations.skorch",
    "senn.training.images": "senn.training.image_training",
}

# New module -> its functions and classes that had another name.
NAMES: dict[str, dict[str, str]] = {
    "senn": {"Proposals": "CandidateConfig"},
    "senn.graph": {
        "Structure": "DependencyGraph",
        "Space": "ChannelGroup",
        "Slot": "CoupledDim",
        "Site": "InsertionPoint",
        "Block": "ResidualBlock",
        "Attribute": "SizeAttribute",
        "columns": "owned_columns",
        "matrix": "weight_matrix",
        "tensor_of": "get_tensor",
        "linear_map": "get_linear",
        "silent_copy": "function_preserving_copy",
    },
    "senn.surgery": {
        "Journal": "UndoLog",
        "carry_out": "apply_moves",
        "operate": "transaction",
        "calibrate": "calibrate_batch_norm",
    },
    "senn.kfac.factors": {
        "Moments": "KroneckerFactors",
        "moments": "kronecker_factors",
        "input_moment": "input_covariance",
        "Inverse": "FactorInverse",
        "InverseOfRows": "WoodburyInverse",
    },
    "senn.kfac.loss_metric": {"OutputMetric": "LossMetric"},
    "senn.scoring.formulas": {"heldout_gain": "held_out_gain", "addition_limit": "max_additions"},
    "senn.candidates.candidate_config": {"Proposals": "CandidateConfig"},
    "senn.events": {
        "Verdict": "Decision",
        "Consideration": "GrowthRound",
        "Candidates": "CandidateList",
    },
    "senn.checkpoint": {
        "held": "optimizer_param_names",
        "hold": "rebind_optimizer",
        "Parts": "ModuleSnapshot",
        "sizes": "describe_shapes",
        "shapes": "tensor_shapes",
        "regrow": "resize_like",
    },
    "senn.collectives": {
        "Ranks": "Communicator",
        "Processes": "ProcessGroupCommunicator",
        "Share": "BatchShare",
        "default_ranks": "default_communicator",
    },
    "senn.distributed": {"gathered": "full_parameters", "rewrap": "rewrap_ddp"},
    "senn.training": {"Recipe": "TrainConfig", "Rounds": "GrowthSchedule", "Run": "TrainResult"},
    "senn.training.image_training": {"image_recipe": "image_config"},
    "senn.viz.plots": {"Drawing": "GrowthFigure"},
    "senn.viz.report": {
        "Told": "RunReport",
        "compact": "downsample_record",
        "library": "charting_library",
    },
}

# Class (its name is unique in senn) -> its attributes, methods and constructor keywords that had another name.
MEMBERS: dict[str, dict[str, str]] = {
    "CandidateConfig": {
        "copies": "copy_fraction",
        "smooth": "data_direction_fraction",
        "residual": "residual_units",
        "identity": "identity_bases",
        "ascent": "ascent_steps",
        "rate": "ascent_step_size",
    },
    "Grower": {
        "consider": "score_candidates",
        "consideration": "last_round",
        "draw": "candidate_set",
        "structure": "graph",
        "unread": "unreadable_maps",
        "proposals": "candidate_config",
        "ranks": "communicator",
    },
    "Candidate": {
        "bound": "gain_lower_bound",
        "heldout": "held_out_gain",
        "error": "held_out_stderr",
        "agreed": "cross_fold_gain",
        "limit": "score_limit",
        "nat": "loss_per_nat",
        "promise": "expected_decrease",
    },
    "GrowthEvent": {
        "bound": "gain_lower_bound",
        "heldout": "held_out_gain",
        "error": "held_out_stderr",
        "limit": "score_limit",
        "nat": "loss_per_nat",
        "promised": "expected_decrease",
        "realised": "realized_decrease",
        "before": "width_before",
        "after": "width_after",
        "which": "removed_units",
    },
    "GrowthRound": {
        "looked_at": "n_samples_seen",
        "nat": "loss_per_nat",
        "limit": "score_limit",
        "eta_of": "eta_by_map",
        "realised": "realized_decrease",
    },
    "PricePolicy": {"keep": "retention_factor", "places": "max_places_per_round"},
    "PaperPolicy": {"prune": "prune_fraction"},
    "Policy": {
        "floor": "min_decrease",
        "removing": "for_pruning_round",
        "whole_eta": "uses_joint_score",
    },
    "DependencyGraph": {
        "maps": "linear_maps",
        "spaces": "groups",
        "sites": "insertion_points",
        "refused": "refusals",
        "blocks": "residual_blocks",
        "linears": "scored_maps",
        "space": "group",
    },
    "ChannelGroup": {"slots": "dims", "quantum": "granularity", "of": "dims_of"},
    "CoupledDim": {"runs": "n_segments", "quiet": "behind_norm"},
    "ResidualBlock": {
        "silent": "output_params",
        "listed": "in_module_list",
        "counts": "depth_attributes",
    },
    "LinearMap": {"taps": "kernel_numel", "scored": "has_factors", "uses": "n_uses"},
    "KroneckerFactors": {
        "inputs": "input_cov",
        "outputs": "grad_cov",
        "cross": "cross_cov",
        "read": "n_rows_read",
    },
    "FactorInverse": {"whole": "dense", "start": "quadratic_form"},
    "WoodburyInverse": {"whole": "dense", "start": "quadratic_form"},
    "LossMetric": {"probe": "pseudo_grad", "nat": "loss_per_nat", "bound": "score_limit"},
    "Communicator": {
        "alone": "is_single",
        "exchange": "all_gather_object",
        "collected": "all_gather",
        "summed": "all_reduce",
        "copied": "broadcast",
        "decided": "broadcast_object",
        "agree": "assert_equal",
        "together": "fail_together",
        "part": "local_slice",
    },
    "TrainConfig": {
        "growing": "growth_steps",
        "rounds": "addition_rounds",
        "removals": "pruning_rounds",
        "candidates": "candidates_per_layer",
        "probe": "max_scoring_samples",
    },
    "SelfExpansion": {"companion": "session"},
    "Callback": {"on_consideration": "on_growth_round"},
    "Receipt": {"structure": "graph"},
    "Widen": {"space": "group"},
    "Prune": {"space": "group"},
    "Insert": {"site": "insertion_point"},
}

# Function (its name is unique in senn) -> its keywords that had another name.
KEYWORDS: dict[str, dict[str, str]] = {
    "apply_moves": {"structure": "graph"},
    "explain": {"structure": "graph"},
    "kronecker_factors": {"dz": "output_grad", "s": "pseudo_grad"},
    "new_parameters": {"structure": "graph"},
    "parameters_per_unit": {"space": "group"},
    "train": {"keeper": "checkpointer"},
    "train_images": {"keeper": "checkpointer"},
    "transaction": {"structure": "graph"},
}

SPELLINGS: dict[str, dict[str, str]] = {
    "senn": {"analyse": "analyze"},
    "senn.graph": {"analyse": "analyze"},
    "senn.data.images": {"read_labelled_idx": "read_labeled_idx"},
    "senn.integrations.transformers": {"labelled": "labeled"},
    "Visit": {"normalises": "normalizes"},
}
"""Module or class -> British spellings of its names: kept, without a warning."""


def _warn(old: str, new: str, depth: int) -> None:
    warnings.warn(
        f"{old} is now {new}; the old name goes in {GONE_IN}",
        DeprecationWarning,
        stacklevel=depth + 1,
    )


# -- modules, and what they hold


def lookup(module: str, name: str) -> Any:
    """Find what an old name of a module stands for: a module's `__getattr__` calls it.

    Args:
        module: the new module's full name.
        name: the name that it lacks.

    Raises:
        AttributeError: it isn't an old name.
    """
    if name in SPELLINGS.get(module, {}):
        return getattr(importlib.import_module(module), SPELLINGS[module][name])
    if f"{module}.{name}" in MODULES:
        return importlib.import_module(f"{module}.{name}")
    new = NAMES.get(module, {}).get(name)
    if new is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    _warn(f"{module}.{name}", f"{module}.{new}", 3)
    return getattr(importlib.import_module(module), new)


def old_names(module: str) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module whose names have changed.

    Args:
        module: the new module's full name.
    """

    def find(name: str) -> Any:
        return lookup(module, name)

    return find


class _Alias(ModuleType):
    """An old module: looks everything up in the new one."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__(old, f"Now `{new}`.")
        self.__path__: list[
            str
        ] = []  # so that `senn.curvature.factors` is found below `senn.curvature`
        self._new = new

    def __getattr__(self, name: str) -> Any:
        """Answer with the new module's attribute, by its old name too."""
        # `inspect` asks every module for its `__file__`, as it does while torch is imported; the new module, which
        # imports torch, would then be imported in the middle of that.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(self._new), name)


class AliasFinder:
    """Imports the old modules. It stands last in `sys.meta_path`, so that only names found nowhere else reach it."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Answer for the old modules only; the import system calls it."""
        return importlib.machinery.ModuleSpec(fullname, cls) if fullname in MODULES else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Make the alias, with a warning."""
        new = MODULES[spec.name]
        _warn(spec.name, new, 6)
        return _Alias(spec.name, new)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Nothing is left to do: the alias looks names up when they are used."""


def install() -> None:
    """Make the old modules importable, once for a process."""
    if AliasFinder not in sys.meta_path:
        sys.meta_path.append(AliasFinder)


# -- classes


def aliased(cls: type[T]) -> type[T]:
    """Give a class its old attributes, methods and constructor keywords, as `MEMBERS` has them."""
    renamed = MEMBERS.get(cls.__name__, {})
    for old, new in renamed.items():
        setattr(cls, old, Renamed(f"{cls.__name__}.{old}", f"{cls.__name__}.{new}", new))
    for old, new in SPELLINGS.get(cls.__name__, {}).items():
        setattr(cls, old, Renamed("", "", new))
    if renamed and "__init__" in vars(cls):
        setattr(cls, "__init__", _keywords(vars(cls)["__init__"], renamed, cls.__name__))  # noqa: B010
    return cls


def keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Give a function its old keywords, as `KEYWORDS` has them."""
    return _keywords(function, KEYWORDS[function.__name__], function.__name__)


class Renamed:
    """An old attribute or method, for reading and writing."""

    def __init__(self, old: str, new: str, name: str) -> None:
        self.old, self.new, self.name = old, new, name

    def __get__(self, instance: Any, owner: type) -> Any:
        if self.old:
            _warn(self.old, self.new, 2)
        return getattr(owner if instance is None else instance, self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        if self.old:
            _warn(self.old, self.new, 2)
        setattr(instance, self.name, value)


def _keywords(function: Callable[P, R], renamed: Mapping[str, str], owner: str) -> Callable[P, R]:
    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        for old in sorted(renamed.keys() & kwargs.keys()):
            _warn(f"{owner}({old}=)", f"{owner}({renamed[old]}=)", 2)
            if renamed[old] in kwargs:
                raise SennError(
                    f"{owner} takes {old} or {renamed[old]}, which are the same, not both"
                )
            kwargs[renamed[old]] = kwargs.pop(old)
        return function(*args, **kwargs)

    return called


def honor_overrides(cls: type, base: str) -> None:
    """Let a subclass that overrides an old method be heard: the base's `__init_subclass__` calls it.

    Args:
        cls: the subclass.
        base: the name of the class whose old names count.
    """
    for old, new in MEMBERS[base].items():
        if old in vars(cls) and new not in vars(cls):
            _warn(f"{base}.{old}", f"{base}.{new}", 3)
            setattr(cls, new, vars(cls)[old])
