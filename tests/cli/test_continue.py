"""`senn fit --continue`: a finished network goes on with new rows and new classes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from cli_cases import refused
from PIL import Image

import senn
from senn.cli.fit_images import prepare_images
from senn.cli.fit_table import prepare
from senn.cli.main import main
from senn.data.tabular.continued_target import continued
from senn.data.tabular.target import Target
from senn.runs import FitOptions

CENTERS = {"b": (0, 0), "d": (3, 0), "a": (0, 3), "c": (3, 3)}


def rows(labels, number=48, seed=0):
    draw = np.random.default_rng(seed)
    kind = draw.choice(labels, number)
    x = np.array([CENTERS[one] for one in kind]) + 0.4 * draw.normal(size=(number, 2))
    return pd.DataFrame(
        {"u": x[:, 0], "v": x[:, 1], "town": draw.choice(["Ulm", "Bonn"], number), "kind": kind}
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run on the classes b and d, and tables to go on with."""
    folder = tmp_path_factory.mktemp("continue")
    old, new = rows(["b", "d"]), rows(["a", "c"], seed=1)
    old.to_csv(folder / "old.csv", index=False)
    new.assign(town="Rome").to_csv(folder / "new.csv", index=False)
    pd.concat([old, new]).to_csv(folder / "both.csv", index=False)
    new.drop(columns="u").to_csv(folder / "lacks.csv", index=False)
    argv = ["fit", folder / "old.csv", "--target", "kind", "--out", folder / "run", "--quiet"]
    assert main([str(one) for one in [*argv, "--epochs", "5", "--max-params", "150"]]) == 0
    return folder


def begun(home, table):
    return prepare(FitOptions(data=str(home / table), continued=str(home / "run"), epochs=4))


def test_new_classes_follow_the_old_ones_and_old_outputs_stay(home):
    run, made = senn.load_run(home / "run"), begun(home, "both.csv")
    assert run.classes == ("b", "d")
    assert made.encoder.target.labels == ("b", "d", "a", "c")
    assert made.encoder.columns == run.encoder.columns
    with torch.no_grad():
        assert torch.allclose(made.network()(made.x)[:, :2], run.model(made.x), atol=1e-6)
    assert made.start == run.model.hidden
    assert "2 classes are new and get outputs of their own: 'a', 'c'" in made.notes


def test_what_will_be_forgotten_and_what_is_strange_is_said(home):
    notes = " ".join(begun(home, "new.csv").notes)
    assert "no row to train on has the class 'b', 'd', so the network will forget it" in notes
    assert "'Rome'" in notes


def test_the_command_trains_on_and_its_run_predicts_all_classes(home, capsys):
    out = home / "next"
    argv = ["fit", home / "both.csv", "--continue", home / "run", "--out", out, "--epochs", "25"]
    assert main([str(one) for one in [*argv, "--json"]]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["data"]["classes"] == ["b", "d", "a", "c"]
    assert results["test"]["accuracy"] > 0.9
    new = rows(["a", "b", "c", "d"], seed=2)
    assert (senn.load_run(out).predict(new) == new["kind"].to_numpy()).mean() > 0.9
    assert senn.load_run(home / "run").classes == ("b", "d")  # it stays as it was


def test_what_doesnt_fit_is_refused_by_name(home, capsys):
    def said(table, *options, run="run"):
        argv = ["fit", home / table, "--continue", home / run, "--out", home / "x", *options]
        return refused(capsys, argv)

    assert "the table lacks the column 'u'" in said("lacks.csv")
    assert "--cv can't be combined with --continue" in said("new.csv", "--cv", "3")
    assert "--target 'town' contradicts the run" in said("new.csv", "--target", "town")
    assert "nowhere" in said("new.csv", run="nowhere")
    argv = ["fit", home / "new.csv", "--continue", home / "run", "--out", home / "run"]
    assert "--out names the run that goes on" in refused(capsys, [*argv, "--overwrite"])


def test_a_resumed_run_knows_the_network_that_it_began_with(home):
    one = begun(home, "both.csv")
    assert one.digest() == begun(home, "both.csv").digest()
    model = one.network()
    assert all(map(torch.equal, model.parameters(), one.network().parameters()))


def test_classes_keep_their_kind_and_numbers_widen_their_bounds():
    numbers = Target.fit("k", pd.Series([1, 2] * 5), "classification")
    assert continued(numbers, pd.Series([3, 1, 0])).labels == (1, 2, 0, 3)
    with pytest.raises(senn.SennError, match=r"row 1: 'x' is a text, .* are numbers, such as 1"):
        continued(numbers, pd.Series([1, "x"]))
    texts = Target.fit("k", pd.Series(["7a", "8"] * 5))
    assert continued(texts, pd.Series([9, 8])).labels == ("7a", "8", "9")
    truth = Target.fit("k", pd.Series([True, False] * 5))
    assert continued(truth, pd.Series(["TRUE", "FALSE"])).labels == truth.labels
    real = Target.fit("k", pd.Series(np.linspace(0, 1, 30)), "regression")
    wider = continued(real, pd.Series([0.5, 7.0]))
    assert (wider.mean, wider.scale, wider.low, wider.high) == (real.mean, real.scale, 0.0, 7.0)


def test_all_networks_of_an_ensemble_go_on_and_the_first_may_grow(home, capsys):
    argv = ["fit", home / "old.csv", "--target", "kind", "--out", home / "several", "--quiet"]
    assert main([str(one) for one in [*argv, "--epochs", "3", "--members", "3"]]) == 0
    before = senn.load_run(home / "several").model
    made = prepare(FitOptions(data=str(home / "both.csv"), continued=str(home / "several")))
    with torch.no_grad():
        assert torch.allclose(made.network()(made.x)[:, :2], before(made.x), atol=1e-6)
    assert any("the 3 networks" in note for note in made.notes)
    argv = ["fit", home / "both.csv", "--continue", home / "several", "--out", home / "more"]
    assert main([str(one) for one in [*argv, "--epochs", "12", "--json"]]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["members"] == 3
    assert results["test"]["accuracy"] > 0.9
    after = senn.load_run(home / "more").model
    assert [one.hidden for one in after.members[1:]] == [one.hidden for one in before.members[1:]]
    assert all(
        not torch.equal(new.body[0].weight, old.body[0].weight)
        for new, old in zip(after.members[1:], before.members[1:], strict=True)
    )
    argv = ["fit", home / "both.csv", "--continue", home / "several", "--out", home / "x"]
    said = refused(capsys, [*argv, "--optimizer", "natural-gradient"])
    assert "an ensemble can't go on with the optimizer 'natural-gradient'" in said


COLORS = {"blue": (0, 0, 200), "red": (200, 0, 0), "black": (0, 0, 0)}


def pictures(folder, names, number=14):
    draw = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for at in range(number):
            noise = draw.integers(0, 50, (12, 12, 3))
            Image.fromarray((noise + COLORS[name]).astype(np.uint8)).save(
                folder / name / f"{at}.png"
            )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run on two classes of images, and folders to go on with."""
    folder = tmp_path_factory.mktemp("photos")
    pictures(folder / "old", ["blue", "red"])
    pictures(folder / "all", ["black", "blue", "red"])
    pictures(folder / "lost", ["black", "red"])
    argv = ["fit", folder / "old", "--out", folder / "run", "--epochs", "2", "--quiet"]
    assert main([str(one) for one in argv]) == 0
    return folder


def test_a_run_of_images_goes_on_with_new_classes(photos, capsys):
    options = FitOptions(data=str(photos / "all"), continued=str(photos / "run"), epochs=2)
    run, made = senn.load_run(photos / "run"), prepare_images(options)
    assert made.encoder.labels == ("blue", "red", "black")
    assert made.encoder.mean == run.encoder.mean
    assert "1 class is new and gets an output of its own: 'black'" in made.notes
    with torch.no_grad():
        new, old = made.test_outputs(made.network().eval()), made.test_outputs(run.model)
    assert np.allclose(new[:, :2], old, atol=1e-5)
    assert made.digest() == prepare_images(options).digest()

    out = photos / "next"
    argv = ["fit", photos / "all", "--continue", photos / "run", "--out", out]
    assert main([str(one) for one in [*argv, "--json"]]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["classes"] == ["blue", "red", "black"]
    found = senn.load_run(out).predict([str(photos / "all" / "black")])
    assert (np.asarray(found) == "black").mean() > 0.9


def test_what_a_network_of_images_forgets_or_has_decided_is_said(photos, home, capsys):
    lost = FitOptions(data=str(photos / "lost"), continued=str(photos / "run"))
    said = "no image to train on has the class 'blue', so the network will forget it"
    assert any(said in note for note in prepare_images(lost).notes)

    def refusal(data, run, *options):
        argv = ["fit", data, "--continue", run, "--out", photos / "x", *options]
        return refused(capsys, argv)

    run = photos / "run"
    assert "--image-size can't be combined" in refusal(photos / "all", run, "--image-size", "16")
    assert "is none of images" in refusal(photos / "all", home / "run")
    assert "is none of a table" in refusal(home / "both.csv", run)
