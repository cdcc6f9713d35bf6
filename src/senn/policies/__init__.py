"""Policies: when and where to change the network. Records in, a decision out.

A *candidate* is the best change of one kind at one place. A policy accepts one or none; the candidate pool then updates
all figures for what was accepted and calls the policy again. Gains are in the unit of eta, twice that of the loss;
prices and expected decreases are in nats per sample, and `Candidate.loss_per_nat` converts a loss.
"""

from senn.policies.candidate import MOVES as MOVES
from senn.policies.candidate import BirthKind as BirthKind
from senn.policies.candidate import Budget, Candidate
from senn.policies.candidate import CandidateKey as CandidateKey
from senn.policies.candidate import Criterion as Criterion
from senn.policies.candidate import Kind as Kind
from senn.policies.candidate import SizeUnit as SizeUnit
from senn.policies.candidate import check_moves as check_moves
from senn.policies.candidate import policy_rule as policy_rule
from senn.policies.candidate import price_of as price_of
from senn.policies.candidate import width_rule as width_rule
from senn.policies.policy import PaperPolicy, Policy, PricePolicy

__all__ = ["Budget", "Candidate", "PaperPolicy", "Policy", "PricePolicy"]
