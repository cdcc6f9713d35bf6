"""Ranges of the arguments of a `Grower`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from senn._validate import Rule, a_seed, callable_, each, instance_of, one_of, text, whole
from senn.candidates.candidate_config import CandidateConfig
from senn.collectives import Communicator
from senn.policies import policy_rule

RANGES: Mapping[str, Rule] = {
    "loss": callable_("a function loss(outputs, targets)"),
    "policy": policy_rule().or_none(),
    "samples": whole(low=1).or_none(),
    "max_params": whole(low=1).or_none(),
    "max_width": whole(low=1).or_none(),
    "round_to": whole(low=1),
    "moves": each(text()),
    "candidate_config": instance_of(CandidateConfig, called="a senn.CandidateConfig").or_none(),
    "averaged": each(instance_of(nn.Module, called="an AveragedModel of the model")),
    "ignore": each(text()),
    "metric": one_of("fisher", "euclidean"),
    "output": callable_("a function that finds the outputs in what the model returns").or_none(),
    "seed": a_seed(),
    "communicator": instance_of(Communicator, called="a senn.collectives.Communicator").or_none(),
}
