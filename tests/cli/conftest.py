"""The command without its figure, which takes a large part of a short run and which few of these tests look at."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def _blank_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixtures of a wider scope are set up before, so their runs have the true figure."""

    def blank(_history: object, path: object, *_: object) -> None:
        Figure((1, 1)).savefig(path, format="png")

    monkeypatch.setattr("senn.cli.fit.growth_figure", blank)
