"""What needs a package that isn't installed says which extra has it."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
absent, works, fails = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(absent))
for use in works:
    exec(use)
said = []
for use in fails:
    try:
        exec(use)
    except Exception as error:
        said.append([type(error).__name__, str(error)])
print(json.dumps(said))
"""


@pytest.mark.parametrize(
    ("absent", "works", "fails"),
    [
        (["sklearn"], [], {"import senn; senn.SENNClassifier()": ("sklearn", "sklearn")}),
        (
            ["pandas", "matplotlib", "PIL"],
            ["from senn.training.batches import validation_split"],
            {
                "import senn; senn.SENNRegressor()": ("pandas", "sklearn"),
                "import senn; senn.load_run('run')": ("pandas", "cli"),
                "from senn.viz.plots import growth_figure": ("matplotlib", "cli"),
                "from senn.data import read_table": ("pandas", "cli"),
                "from senn.data.images import load_images": ("PIL", "cli"),
            },
        ),
    ],
    ids=["sklearn", "pandas, matplotlib, PIL"],
)
def test_missing_packages_are_named_with_their_extra(absent, works, fails):
    """All uses of one process: what an earlier one has imported doesn't help a later one."""
    argv = [sys.executable, "-c", SCRIPT, json.dumps([absent, works, [*fails]])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said) == len(fails)
    for (kind, sentence), (package, extra) in zip(said, fails.values(), strict=True):
        assert kind == "SennError"
        assert f"needs the package {package!r}" in sentence
        assert f"pip install 'senn[{extra}]'" in sentence
