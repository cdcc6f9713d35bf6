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
