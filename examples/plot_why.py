"""Why this and not that.

Each round of growth leaves a `senn.events.GrowthRound`: every candidate that was accepted, in order, and
the best of those that were refused, each with its gain, its price and its margin. Here one round of a network that
learns digits.
"""

# %%
# A round
# -------
# A network with two hidden layers, too narrow for its task, trained for a while.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import senn

images, digits = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(digits)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(40):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()

grower = senn.Grower(model, optimizer, F.cross_entropy, policy=senn.PricePolicy(kappa=0.1))
for event in grower.grow([(x, y)]):
    print(event)

# %%
# What was on offer
# -----------------
# `place` is a module whose outputs change in number, or before which a layer would go. The expected decrease is half
# a gain: a decrease of the loss in nats per sample. The margin is what remains of it after one standard error, a
# layer's discount and the price.

last = grower.last_round
print(f"eta {last.eta:.3f} of at most {last.score_limit:.3f}, {last.parameters:,} parameters")
print(f"{'':9}{'kind':8}{'place':7}{'detail':22}{'expected':>9}{'price':>9}{'margin':>10}")
for word, decisions in (("accepted", last.accepted), ("refused", last.refused)):
    for decision in decisions[:6]:
        one = decision.candidate
        figures = f"{one.expected_decrease:9.4f}{decision.price:9.4f}{decision.margin:10.4f}"
        print(f"{word:9}{one.kind:8}{one.place:7}{one.detail[:20]:22}{figures}")

# %%
# Drawn
# -----
# Units are picked one by one, and each is valued next to those that were picked already: a decrease that the first
# bring can't be counted again. When nothing is above its price (the mark), the round ends. A candidate whose expected
# decrease exceeds its price can be refused, because it no longer does after the standard error and a layer's discount.

shown = [(v, True) for v in last.accepted[:14]] + [(v, False) for v in last.refused[:6]]
shown = [(v, taken) for v, taken in shown if v.candidate.kind != "prune"]
names = [f"{v.candidate.kind} {v.candidate.place}" for v, _ in shown]
figure, axes = plt.subplots(figsize=(9, 0.3 * len(shown) + 1.2), layout="constrained")
rows = range(len(shown))
colors = ["#30506d" if taken else "#e07b39" for _, taken in shown]
axes.barh(rows, [v.candidate.expected_decrease for v, _ in shown], color=colors, height=0.7)
errors = [v.candidate.held_out_stderr / (2 * v.candidate.loss_per_nat) for v, _ in shown]
axes.errorbar(
    [v.candidate.expected_decrease for v, _ in shown],
    rows,
    xerr=errors,
    fmt="none",
    ecolor="0.45",
    capsize=2,
)
axes.scatter(
    [v.price for v, _ in shown], rows, marker="|", s=160, color="black", zorder=3, label="price"
)
axes.bar(0, 0, color="#30506d", label="accepted")
axes.bar(0, 0, color="#e07b39", label="refused")
axes.set_yticks(rows, names)
axes.invert_yaxis()
axes.set_xscale("symlog", linthresh=0.01)
axes.set_xlim(0, None)
axes.set_xlabel("promised decrease of the loss, nats per sample (± one standard error)")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
plt.show()
