"""A classifier that learns of new classes on the way.

A network has learned to tell four digits apart. Then images of two more digits come in. It gets outputs for them in the
middle of training: what it says of the old digits stays as it was, its optimizer goes on, and it learns the new ones
beside a few of the old images.
"""

# %%
# Four digits, and a network for them
# -----------------------------------
# Nothing in the model says that its outputs may grow.

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import senn

digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
old, new = labels < 4, (labels == 4) | (labels == 5)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
grower = senn.Grower(model, optimizer, loss=F.cross_entropy, moves=("width",))

shown = []


def train(x, y, steps):
    """Train, and keep for each step how many of the old and of the new digits are right."""
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        with torch.no_grad():
            right = (model(images).argmax(1) == labels).float()
        shown.append((right[old].mean().item(), right[new].mean().item()))


train(images[old], labels[old], 100)

# %%
# Two more
# --------
# One call. The new rows of the last layer are the mean of the old ones, and their biases so low that both classes
# together have a hundredth of the probability: no opinion.

before = model(images[old]).detach()
event = grower.add_outputs(2, ["four", "five"], batch=(images[old], labels[old]))
print(event)
after = model(images[old]).detach()
print(f"old outputs moved by {(after[:, :4] - before).abs().max():.1e}")
print(f"new classes have {after.softmax(1)[:, 4:].sum(1).max():.3f} together at most")
moments = optimizer.state[model[2].weight]["exp_avg"]
print(f"momentum: {tuple(moments.shape)}, zero where rows are new: {not moments[4:].any()}")

# %%
# Training goes on
# ----------------
# On images of the new digits and ten of each old one. Growth goes on as well: a round says whether six digits are worth
# more hidden units than four.

kept = torch.cat([(labels == digit).nonzero().flatten()[:10] for digit in range(4)])
some = torch.cat([new.nonzero().flatten()[:40], kept])
train(images[some], labels[some], 40)
for change in grower.grow([(images[some], labels[some])]):
    print(change)
train(images[some], labels[some], 60)

# %%
# What became of both
# -------------------

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, values in zip(("0 to 3", "4 and 5"), zip(*shown, strict=True), strict=True):
    axes.plot([100 * value for value in values], label=f"digits {name}")
axes.axvline(100, color="0.6", linestyle="--")
axes.annotate("two outputs more", (102, 8))
axes.set(xlabel="step", ylabel="right (%)", ylim=(-3, 103))
axes.legend(loc="center right")
plt.show()
