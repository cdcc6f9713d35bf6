"""What needs a package that isn't installed says which extra has it."""

import json
import subprocess
import sys

SCRIPT = """
import json, sys
said = []
for absent, works, fails in json.loads(sys.argv[1]):
    sys.modules.update(dict.fromkeys(absent))
    for use in works:
        exec(use)
    for use in fails:
        try:
            exec(use)
        except Exception as error:
            said.append([type(error).__name__, str(error)])
    for package in absent:
        del sys.modules[package]
print(json.dumps(said))
"""

FIRST_LOOK = """
import torch, senn
from torch import nn
layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
model = nn.Sequential(nn.Linear(4, 8), layer, nn.LayerNorm(8), nn.Linear(8, 2))
assert senn.analyze(model, torch.zeros(2, 3, 4)).groups
assert "torch._dynamo" not in sys.modules  # which would take most of the time
"""

CASES = [
    (
        ["pandas", "matplotlib", "PIL"],
        ["from senn.training.batches import validation_split", FIRST_LOOK],
        {
            "import senn; senn.SENNRegressor()": ("pandas", "sklearn"),
            "import senn; senn.load_run('run')": ("pandas", "cli"),
            "from senn.viz.plots import growth_figure": ("matplotlib", "cli"),
            "from senn.data import read_table": ("pandas", "cli"),
            "from senn.data.images import load_images": ("PIL", "cli"),
        },
    ),
    (["sklearn"], [], {"import senn; senn.SENNClassifier()": ("sklearn", "sklearn")}),
]
"""Packages that aren't there, what works without them, and the package and extra that each other use names."""


def test_missing_packages_are_named_with_their_extra():
    """All uses of one process: what an earlier one has imported doesn't help a later one."""
    told = [(absent, works, [*fails]) for absent, works, fails in CASES]
    argv = [sys.executable, "-c", SCRIPT, json.dumps(told)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    named = [one for _, _, fails in CASES for one in fails.values()]
    for (kind, sentence), (package, extra) in zip(said, named, strict=True):
        assert kind == "SennError"
        assert f"needs the package {package!r}" in sentence
        assert f"pip install 'senn[{extra}]'" in sentence
