"""A boundary that gets its bends when it needs them.

A network with a single hidden unit starts on two interleaved half circles. It can draw one line. Every 30 steps
senn computes what one more unit would be worth; if that is more than its price, units are added. The function is the
same before and after each change, and training goes on with the same optimizer.
"""

# %%
# The data, and an ordinary model
# -------------------------------
# Nothing in the model says that it may grow. The policy is the default one at a high price, so that growth is slow
# enough to watch.

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from sklearn.datasets import make_moons
from torch import nn
from torch.nn import functional as F

import senn

points, labels = make_moons(400, noise=0.2, random_state=1)
x, y = torch.tensor(points, dtype=torch.float32), torch.tensor(labels)
torch.manual_seed(1)
model = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
policy = senn.PricePolicy(kappa=0.3)
grower = senn.Grower(model, optimizer, F.cross_entropy, policy, moves=("width",))

# %%
# Training
# --------
# An ordinary loop, in which two lines are senn's. It also keeps the network's opinion of the plane at each moment
# worth showing.

across, up = torch.linspace(-1.8, 2.8, 161), torch.linspace(-1.4, 1.9, 121)
plane = torch.cartesian_prod(across, up)
losses, changes, pictures = [], [], []


def picture(step):
    """Keep what the network says about the plane."""
    with torch.no_grad():
        opinion = model(plane).softmax(1)[:, 1].reshape(len(across), len(up)).T
        loss = F.cross_entropy(model(x), y).item()
    pictures.append((step, model[0].out_features, loss, opinion))


picture(0)
for step in range(601):
    if step % 30 == 0 and step <= 300:
        events = grower.grow([(x, y)])
        for event in events:
            print(f"step {step}: {event}")
            changes.append((step, event))
        if events:
            picture(step)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
picture(600)

# %%
# What it drew
# ------------
# A boundary has about as many bends as there are units that contribute to it.

ink, accent = "#30506d", "#e07b39"
shown = pictures[::2]
figure, panels = plt.subplots(1, len(shown), figsize=(3 * len(shown), 2.9), layout="constrained")
for axes, (step, units, loss, opinion) in zip(panels, shown, strict=True):
    axes.contourf(across, up, opinion > 0.5, levels=1, cmap=ListedColormap(["#d7e6f2", "#f6e3d3"]))
    axes.contour(across, up, opinion, levels=[0.5], colors=[ink])
    axes.scatter(*x.T, c=[accent if label else ink for label in labels], s=5, alpha=0.7)
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"step {step}: {units} unit{'s' * (units > 1)}, loss {loss:.2f}", fontsize=10)
plt.show()

# %%
# What each change was expected to bring, and what it brought
# -----------------------------------------------------------
# The loss doesn't jump where the network grows (dotted lines, with the number of units); it bends.

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.plot(losses, color=ink)
for step, event in changes:
    axes.axvline(step, color=accent, linestyle=":")
    axes.text(step + 2, 1.45, f"{event.width_before} → {event.width_after}", color=accent, va="top")
axes.set(xlabel="step", ylabel="training loss, nats", xlim=(-5, 305), ylim=(0, 1.5))
axes.spines[["top", "right"]].set_visible(False)
plt.show()
