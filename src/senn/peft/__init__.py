"""LoRA without a rank: adapters of PEFT whose ranks grow and shrink while they train, under one budget."""

from senn.peft.allocation import PairScores
from senn.peft.allocator import RankAllocator
from senn.peft.pairs import LowRankPair, find_pairs, uniform_params
from senn.peft.rank_records import RankEvent, RankRound

__all__ = [
    "LowRankPair",
    "PairScores",
    "RankAllocator",
    "RankEvent",
    "RankRound",
    "find_pairs",
    "uniform_params",
]
