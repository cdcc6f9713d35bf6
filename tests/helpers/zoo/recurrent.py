"""Recurrent models."""

from __future__ import annotations

from torch import nn

from zoo.entry import Entry, vectors, words


class Tagger(nn.Module):
    def __init__(self, kind, layers=1):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(13, 6), kind(6, 7, layers, batch_first=True)
        self.drop, self.out = nn.Dropout(0.1), nn.Linear(7, 5)

    def forward(self, x):
        y, _ = self.rnn(self.embed(x))
        return self.out(self.drop(y[:, -1]))


class Cells(nn.Module):
    """A loop over time of the user's own."""

    def __init__(self):
        super().__init__()
        self.hidden = 6
        self.cell, self.out = nn.GRUCell(3, self.hidden), nn.Linear(self.hidden, 5)

    def forward(self, x):
        state = x.new_zeros(x.shape[0], self.hidden)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.out(state)


ENTRIES = {
    "lstm": Entry(
        lambda: Tagger(nn.LSTM),
        words(13, 5),
        {"embed": 6, "rnn.weight_ih_l0": 7},
        never={"out": "outputs"},
    ),
    "gru": Entry(
        lambda: Tagger(nn.GRU),
        words(13, 5),
        {"embed": 6, "rnn.weight_ih_l0": 7},
        never={"out": "outputs"},
    ),
    "lstm of two layers": Entry(
        lambda: Tagger(nn.LSTM, 2),
        words(13, 5),
        {"embed": 6, "rnn.weight_ih_l0": 7},
        never={"out": "outputs"},
    ),
    "gru cell": Entry(Cells, vectors(4, 3), {"cell.weight_ih": 6}, never={"out": "outputs"}),
}
