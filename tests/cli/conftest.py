"""Runs that several tests look at, and the command without its figure, which takes long and which few look at."""

from pathlib import Path

import pytest
from cli_cases import fit, people
from matplotlib.figure import Figure

from senn.cli.main import main


@pytest.fixture(autouse=True)
def _blank_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixtures of a wider scope are set up before, so their runs have the true figure."""

    def blank(_history: object, path: object, *_: object) -> None:
        Figure((1, 1)).savefig(path, format="png")

    monkeypatch.setattr("senn.cli.fit.growth_figure", blank)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tables and a run on each."""
    folder = tmp_path_factory.mktemp("home")
    frame = people()
    frame.to_csv(folder / "people.csv", index=False)
    frame.drop(columns="kind").to_csv(folder / "money.csv", index=False)
    assert main([*fit(folder, "people.csv", "classes"), "--target", "kind", "--epochs", "12"]) == 0
    assert (
        main(
            [*fit(folder, "money.csv", "numbers"), "--target", "größe", "--column", "größe=number"]
        )
        == 2
    )
    frame.fillna({"größe": 0.25}).drop(columns="kind").to_csv(folder / "money.csv", index=False)
    assert main([*fit(folder, "money.csv", "numbers"), "--target", "größe", "--epochs", "2"]) == 0
    return folder
