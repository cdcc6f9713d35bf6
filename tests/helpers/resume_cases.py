"""Shared by several test files: TABLE, MemoryCheckpointer, X, Y."""

import torch
from sklearn.datasets import load_digits

from senn.checkpoint.model_state import packed
from senn.collectives import Communicator
from senn.training import TrainConfig

_DIGITS = load_digits()
X = torch.tensor(_DIGITS.data[:400] / 16, dtype=torch.float32)


Y = torch.tensor(_DIGITS.target[:400])


TABLE = TrainConfig(
    epochs=3,
    batch_size=64,
    addition_rounds=(0.05, 0.1, 0.3),
    pruning_rounds=(0.6,),
    max_scoring_samples=128,
    candidates_per_layer=6,
    hidden=(3,),
)


class MemoryCheckpointer:
    """Keeps the states of some steps, as they would lie on a disk."""

    def __init__(self, state=None, wanted=()):
        self.state, self.stopping, self.communicator = state, False, Communicator()
        self.wanted, self.asked, self.kept = wanted, 0, []

    def record(self, record):
        pass

    def restart(self, history):
        self.restarted = list(history)

    def is_due(self):
        self.asked += 1
        return self.asked in self.wanted

    def save(self, state):
        self.kept.append(packed(state))

    def end(self):
        pass
