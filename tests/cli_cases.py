"""What tests of the command share."""

from senn.cli.main import main


def refused(capsys, argv):
    """The one sentence of a refusal."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("senn: ")
    assert captured.err.count("\n") == 1
    return captured.err


FILES = ["growth.png", "history.jsonl", "model.json", "model.safetensors", "results.json"]


def fit(folder, table, out="run"):
    return ["fit", str(folder / table) if "." in table else table, "--out", str(folder / out)]
