"""What needs a package that isn't installed says which extra has it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("package", "use", "extra"),
    [
        ("sklearn", "import senn; senn.SENNClassifier()", "sklearn"),
        ("pandas", "import senn; senn.SENNRegressor()", "sklearn"),
        ("pandas", "import senn; senn.load_run('run')", "cli"),
        ("matplotlib", "from senn.viz.plots import growth_figure", "cli"),
        ("pandas", "from senn.data import read_table", "cli"),
        ("PIL", "from senn.data.images import load_images", "cli"),
    ],
)
def test_missing_packages_are_named_with_their_extra(package, use, extra):
    code = f"import sys; sys.modules[{package!r}] = None\n{use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("senn.errors.SennError: ")
    assert f"needs the package {package!r}" in said
    assert f"pip install 'senn[{extra}]'" in said
