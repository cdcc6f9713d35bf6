"""`senn fit` measures the network that it keeps at smaller sizes."""

import json

from cli_cases import fit, people

from senn.cli.main import main
from senn.events import Frontier


def test_results_have_it_and_a_line_says_how_small_the_network_could_be(tmp_path, capsys):
    people(200).to_csv(tmp_path / "people.csv", index=False)
    argv = [*fit(tmp_path, "people.csv"), "--target", "kind", "--epochs", "4"]
    # Of a limited size, so that no linear model is kept.
    argv += ["--members", "3", "--max-params", "20000"]
    assert main(argv) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    found = Frontier.from_dict(results["frontier"])
    assert found.points[0].parameters * results["members"] == results["parameters"]
    assert found.score_name == "accuracy"
    small = found.smallest(0.01)
    line = (
        f"one network, pruned without training, {small.parameters:,} parameters ({found.share_removed(small):.0%} of "
        "the units removed) would be within 0.01 of its validation accuracy"
    )
    if small.parameters == found.points[0].parameters:
        line = "without training no unit can be pruned within 0.01 of its validation accuracy"
    assert line in capsys.readouterr().out.splitlines()
    last = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])
    assert last["frontier"] == results["frontier"]


def test_without_validation_rows_nothing_is_said_of_it(tmp_path, capsys):
    people(20).to_csv(tmp_path / "people.csv", index=False)
    assert main([*fit(tmp_path, "people.csv"), "--target", "kind", "--epochs", "2"]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["frontier"] is None
    assert "without training" not in capsys.readouterr().out
