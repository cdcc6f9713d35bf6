"""A GPT that grows while it trains.

A decoder of characters begins with one layer of two narrow heads. While it learns, senn looks at some windows of its
text from time to time, and adds heads, feed-forward units or a layer, as long as enough tokens are left to train the
larger network on.
"""

# %%
# A text
# ------
# The reference of the Python language comes with every Python. The network, the text and the run are those of
# `examples/grow_gpt.py`, a training script that also reads files and folders of your own.

import os
import sys
import tempfile
from pathlib import Path
from pydoc_data import topics

import matplotlib.pyplot as plt

sys.path.insert(0, os.getcwd())
from gpt_model import Config, Text
from grow_gpt import Run, size

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "reference.txt"
    path.write_text("\n".join(topics.topics[name] for name in sorted(topics.topics)))
    text = Text(path, context=32)
print(f"{len(text.train):,} characters to train on, {text.vocabulary} different ones")

# %%
# Growth under a budget of operations
# -----------------------------------
# Training and looking end when they have taken 10 billion floating-point operations. Of a fixed budget a larger network
# sees fewer tokens: it grows only where some of them are left for each parameter, few here since the run takes seconds.

config = Config(
    width=32,
    head_size=8,
    hidden=32,
    context=32,
    batch=8,
    budget=1e10,
    looks=3,
    look_windows=48,
    tokens_per_parameter=4,
)
run = Run(config, text)
run.run()
print(f"{size(run.model):,} parameters: {run.model.sizes()}")

# %%
# The loss at any time
# --------------------
# Vertical lines are growth events.

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
operations, _, losses = zip(*run.curve, strict=True)
axis.plot([one / 1e9 for one in operations], losses, marker=".")
for event in run.growths:
    axis.axvline(float(event.split()[0]) * config.budget / 1e9, color="0.7", lw=1, zorder=0)
axis.set_xlabel("operations in billions")
axis.set_ylabel("nats a character, validation")
axis.spines[["top", "right"]].set_visible(False)
plt.show()
