"""What is mistyped is answered with what it is like."""

import subprocess
import sys

import pytest
from cli_cases import refused


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["fitt", "wine"], "did you mean 'fit'?"),
        (["fit", "wine", "--epocs", "3"], "did you mean '--epochs'?"),
        (["fit", "wine", "--epocs", "3"], "see 'senn fit --help'"),
        (["fit", "wine", "--target", "Cultivar"], "did you mean 'cultivar'?"),
        (["fit", "wine", "--column", "alcohl=dropped"], "did you mean 'alcohol'?"),
        (["fit", "wine", "--optimizer", "adamv"], "did you mean 'adam"),
        (["export", "runs/x", "--to", "onx"], "did you mean 'onnx'?"),
    ],
)
def test_mistyped_names_are_answered(capsys, tmp_path, monkeypatch, argv, answer):
    monkeypatch.chdir(tmp_path)
    assert answer in refused(capsys, argv)


def test_the_first_line_comes_before_torch():
    code = (
        "import sys; from senn.cli import main as m; "
        "m._announce('fit', {'data': 'wine'}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "reading wine\nFalse\n"
