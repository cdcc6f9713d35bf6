"""Notebooks: what results look like there, in one that is really run."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import senn
from senn import html
from senn.events import CandidateList

HOSTILE = "<script>alert('x')</script>"


def grown(module_name="first"):
    """A grower after one round, on a model one of whose modules has that name."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    layers = nn.Sequential()
    layers.add_module(module_name, nn.Linear(2, 2))
    layers.add_module("act", nn.ReLU())
    layers.add_module("last", nn.Linear(2, 2))
    grower = senn.Grower(layers, loss=F.cross_entropy)
    candidates = grower.score_candidates([(x, y)])
    return grower, candidates, grower.grow()


def test_everything_has_a_table_and_names_stay_text():
    grower, candidates, events = grown(HOSTILE)
    assert events
    assert isinstance(candidates, CandidateList)
    explanation = senn.explain(grower.graph)
    for shown in (candidates, events[0], grower.last_round, grower.graph, explanation):
        html = shown._repr_html_()
        assert "<table>" in html
        assert "<script" not in html
        assert "&lt;script&gt;" in html
    assert candidates._repr_html_().count("<tr>") == len(candidates) + 1
    every = len(grower.last_round.accepted) + len(grower.last_round.refused)
    assert grower.last_round._repr_html_().count("<svg") == every


def test_a_terminal_shows_a_line_for_each():
    grower, _, events = grown()
    round_ = grower.last_round
    lines = str(round_).splitlines()
    assert len(lines) == 2 + len(round_.accepted) + len(round_.refused)
    assert [line.split()[0] for line in lines[2:]].count("accepted") == len(round_.accepted)
    assert str(events[0]) in repr(events)
    assert "\n" not in repr(events)


def test_lists_of_candidates_are_lists_and_explanations_text():
    grower, candidates, _ = grown()
    assert sorted(candidates, key=lambda one: -one.held_out_gain) == candidates
    assert CandidateList()._repr_html_() == "<p>No candidates.</p>"
    assert senn.explain(grower.graph).startswith("group ")
    fixed = senn.explain(nn.Sequential(nn.Linear(2, 2)), torch.zeros(3, 2))
    assert "because" in fixed._repr_html_()


@pytest.mark.parametrize("widths", [(), (1,), (3, 40, 7), (5,) * 200])
def test_a_picture_has_a_column_for_each_layer(widths):
    picture = html.network(widths, changed=[1] * len(widths))
    assert picture.count("<text") == len(widths)
    assert "nan" not in picture


def test_a_staircase_ends_at_its_last_size():
    assert html.staircase([(0, 5)], "") == ""
    picture = html.staircase([(0, 0), (4, 10), (16, 5)], "a < b")
    assert "a &lt; b" in picture
    assert (
        "H160.0V4.0H320.0V40.0" in picture
    )  # half the way by the root of time: full height, then half


def test_estimators_keep_their_own_picture():
    pytest.importorskip("sklearn")
    x = np.random.default_rng(0).normal(size=(80, 2))
    estimator = senn.SENNClassifier(max_epochs=2, random_state=0)
    before = estimator._repr_html_()
    assert "sk-" in before
    assert "hidden layers" not in before
    after = estimator.fit(x, x[:, 0] > 0)._repr_html_()
    assert "sk-" in after
    assert f"hidden layers {'-'.join(map(str, estimator.architecture_)) or 'none'}" in after
    assert "<svg" in after


def test_an_estimator_says_how_it_goes_on_if_it_is_asked_to(capsys):
    pytest.importorskip("sklearn")
    x = np.random.default_rng(0).normal(size=(80, 2))
    quiet, loud = (
        senn.SENNClassifier(max_epochs=3, random_state=0, verbose=level) for level in (0, 1)
    )
    quiet.fit(x, x[:, 0] > 0)
    assert capsys.readouterr().out == ""
    loud.fit(x, x[:, 0] > 0)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said if line.startswith("epoch")] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
    ]
    assert said[-1].startswith("training ended: ")
    assert np.array_equal(quiet.predict_proba(x), loud.predict_proba(x))


CELLS = (
    "import torch, senn\nfrom torch import nn\n"
    "x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))\ny = (x[:, 0] * x[:, 1] > 0).long()\n"
    "model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))",
    "senn.explain(model, x)",
    "grower = senn.Grower(model)\ngrower.consider([(x, y)])",
    "grower.grow()[0]",
    "grower.consideration",
    "senn.SENNClassifier(max_epochs=2, random_state=0, verbose=1).fit(x.numpy(), y.numpy())",
    "from senn.viz.plots import growth_figure\nfigure = growth_figure(_.history_)\n"
    "figure.axes[0].set_title('mine')\nfigure",
)


def test_a_notebook_that_is_run_shows_them():
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("sklearn")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbclient.NotebookClient(notebook, timeout=120).execute()
    shown = [cell.outputs[-1]["data"] for cell in notebook.cells[1:]]
    assert ["text/html" in one for one in shown] == [True] * 5 + [False]
    assert all("<table" in one["text/html"] for one in shown[:4])
    assert "sk-" in shown[4]["text/html"]
    assert "<svg" in shown[4]["text/html"]
    assert "image/png" in shown[5]
    progress = notebook.cells[5].outputs[0]["data"][
        "text/html"
    ]  # renewed in place: as it was at the end
    assert '<progress value="2" max="2"' in progress
    assert "training ended" in progress
