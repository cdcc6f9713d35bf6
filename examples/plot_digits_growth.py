"""The history of a run as a figure: digits.

The training loop of senn (`senn.training.train`, which `senn fit` and the estimators use too) on
handwritten digits, and the figure that `senn.viz.plots.growth_figure` makes of its history.
"""

# %%
# A run
# -----
# The defaults find the size by themselves: they add units in the first steps, when these are worth most, and prune
# those that turned out to be worth little.

from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from senn.training import TrainConfig, train
from senn.viz.plots import growth_figure

images, digits = load_digits(return_X_y=True)
split = train_test_split(images / 16, digits, test_size=0.3, stratify=digits, random_state=0)
x, x_test, y, y_test = map(torch.as_tensor, split)
mean, spread = x.mean(0), x.std(0).clamp_min(0.1)
x, x_test = (((rows - mean) / spread).float() for rows in (x, x_test))

recipe = TrainConfig(hidden=(4,))
run = train(x, y, task="classification", outputs=10, recipe=recipe)
for record in run.history:
    if record["event"] == "growth":
        print(f"step {record['step']}: {record['text']}")

# %%
# What came of it
# ---------------

with torch.no_grad():
    accuracy = (run.model(x_test).argmax(1) == y_test).float().mean()
print(
    f"hidden layers {run.architecture}, {run.parameters:,} parameters, test accuracy {accuracy:.3f}"
)

# %%
# The figure shows widths, losses, and the expected and the realized decrease of each round. `senn fit` puts it into
# the folder of each run as `growth.png`.

with TemporaryDirectory() as folder:
    path = Path(folder) / "growth.png"
    growth_figure(run.history, path, start=recipe.hidden)
    image = plt.imread(path)
figure = plt.figure(figsize=(10, 9))
axes = figure.add_axes((0, 0, 1, 1))
axes.imshow(image)
axes.axis("off")
plt.show()
