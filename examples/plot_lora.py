"""LoRA without a rank.

The adapters of a small vision transformer get their ranks while it learns: the start is rank 1 everywhere, and what is
given is a budget of parameters. The transformer knows handwritten digits from 0 to 4, and is adapted to those from 5
to 9.
"""

# %%
# A model that knows something
# ----------------------------
# A `ViTForImageClassification` of two layers, from its configuration; nothing is downloaded. It learns the digits below
# five in a few seconds.

import warnings

import matplotlib.pyplot as plt
import peft
import torch
import transformers
from sklearn.datasets import load_digits
from torch.nn import functional as F

from senn.peft import RankAllocator, uniform_params

warnings.simplefilter("ignore")  # they name files of the machine that makes this page

images, digits = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(digits)
known, new = y < 5, y >= 5


def train(model, optimizer, x, y, steps, between=lambda step: None):
    """Train on minibatches; `between` is called before each step."""
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        between(step)
        rows = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(pixel_values=x[rows]).logits, y[rows]).backward()
        optimizer.step()


torch.manual_seed(0)
config = transformers.ViTConfig(
    image_size=8, patch_size=2, num_channels=1, num_labels=5, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=64,
)  # fmt: skip
vit = transformers.ViTForImageClassification(config)
train(vit, torch.optim.AdamW(vit.parameters(), lr=3e-3), x[known], y[known], 150)

# %%
# Adapters with a budget
# ----------------------
# As many parameters as rank 4 everywhere would have. The first round comes before the first step; later ones let new
# directions take the place of those that have turned out to be worth less.

adapters = peft.LoraConfig(r=1, lora_alpha=2, target_modules="all-linear")
model = peft.get_peft_model(vit, adapters)
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=5e-3)
budget = uniform_params(model, 4)
allocator = RankAllocator(model, optimizer, F.cross_entropy, max_params=budget)
x_new, y_new = x[new], y[new] - 5
history = []


def between(step):
    """Change ranks three times; note them."""
    if step in (0, 20, 60):
        for event in allocator.adapt([({"pixel_values": x_new[:128]}, y_new[:128])]):
            print(f"step {step}: {event}")
        history.append((step, allocator.ranks()))


train(model, optimizer, x_new, y_new, 150, between)
with torch.no_grad():
    right = (model.eval()(pixel_values=x_new).logits.argmax(1) == y_new).float().mean()
print(f"accuracy on the new digits {right:.3f}, {sum(p.numel() for p in trained):,} of {budget:,}")

# %%
# Where rank is worth something
# -----------------------------
# PEFT loads what `model.save_pretrained(folder)` writes: its configuration has the ranks in `rank_pattern`.

names = [name.removeprefix("base_model.model.vit.") for name in history[0][1]]
figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
for number, (step, ranks) in enumerate(history):
    places = [place + 0.27 * (number - 1) for place in range(len(names))]
    axes.bar(places, ranks.values(), width=0.25, label=f"after the round at step {step}")
axes.axhline(4, color="0.6", lw=1, zorder=0)
axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
axes.set_ylabel("rank")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()
