"""`senn reproduce`: its options, and the folder that it writes."""

import pathlib
import signal
import sys
import tomllib
import types

import pytest
from cli_cases import refused

import senn
import senn_reproduce
from senn.cli.help_texts import EXPERIMENTS
from senn.cli.main import main
from senn.data.images import KNOWN_SETS, load_images
from senn.errors import SennError
from senn_reproduce.image_sets import SOURCES


class TestReproduce:
    @pytest.fixture
    def experiment(self, monkeypatch):
        """A stand-in for every experiment: notes what it is called with, writes a file and then does `then()`."""
        module = types.ModuleType("an experiment")
        module.FULL, module.calls, module.then = object(), [], lambda: None

        def run(out, **arguments):
            module.calls.append(arguments)
            (out / "results.json").write_text(str(len(module.calls)))
            module.then()

        module.main = run
        for name in ("moons", "mnist", "mnist_sizes"):
            monkeypatch.setitem(sys.modules, f"senn_reproduce.{name}", module)
        return module

    def test_runs_the_experiment(self, experiment, tmp_path, capsys):
        assert main(["reproduce", "moons", "--seeds", "2", "--out", str(tmp_path / "run")]) == 0
        assert experiment.calls == [{"seeds": 2, "settings": None}]
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["results.json"]
        assert capsys.readouterr().out == f"written to {tmp_path / 'run'}: results.json\n"

    def test_options_of_experiments_on_images(self, experiment, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["reproduce", "mnist-sizes"]) == 0
        options = ["--full", "--device", "cpu", "--data-dir", "pictures"]
        assert main(["reproduce", "mnist", *options]) == 0
        assert experiment.calls == [
            {"seeds": 3, "settings": None, "data_dir": None, "device": None},
            {
                "seeds": 5,
                "settings": experiment.FULL,
                "data_dir": pathlib.Path("pictures"),
                "device": "cpu",
            },
        ]
        assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
            "mnist",
            "mnist-sizes",
        ]

    def test_results_are_replaced_when_asked_for(self, experiment, tmp_path, capsys):
        argv = ["reproduce", "moons", "--out", tmp_path / "run"]
        assert main(list(map(str, argv))) == 0
        assert "holds a run already" in refused(capsys, argv)
        assert (tmp_path / "run" / "results.json").read_text() == "1"
        assert main([*map(str, argv), "--overwrite"]) == 0
        assert (tmp_path / "run" / "results.json").read_text() == "2"
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "main.tex").write_text("")
        assert "isn't empty and holds no run" in refused(
            capsys, [*argv[:-1], tmp_path / "thesis", "--overwrite"]
        )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interruption_leaves_the_folder_as_it_was(
        self, experiment, tmp_path, capsys, number
    ):
        experiment.then = lambda: signal.raise_signal(number)
        assert main(["reproduce", "moons", "--out", str(tmp_path / "deep" / "run")]) == 128 + number
        assert capsys.readouterr().err == "senn: interrupted\n"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["mnist", "--device", "abacus"], "the device 'abacus' can't be used: "),
            (["mnist", "--device", "meta"], "the device 'meta' can't be used: "),
            (
                ["mnist", "--data-dir", "nowhere"],
                "'nowhere', from --data-dir or SENN_DATA, can't be read",
            ),
            (
                ["mnist-sizes", "--data-dir", "nowhere"],
                "'nowhere', from --data-dir or SENN_DATA, can't be read",
            ),
            (
                ["moons", "--device", "cpu"],
                "--device is for experiments on images, which moons isn't",
            ),
            (
                ["regression", "--data-dir", "x"],
                "--data-dir is for experiments on images, which regression isn't",
            ),
            (["moons", "--seeds", "0"], "'0' is not a whole number above 0"),
        ],
    )
    def test_bad_options(self, tmp_path, capsys, monkeypatch, argv, message):
        monkeypatch.chdir(tmp_path)
        assert message in refused(capsys, ["reproduce", *argv])
        assert list(tmp_path.iterdir()) == []

    def test_help_lists_them_all(self, capsys):
        with pytest.raises(SystemExit):
            main(["reproduce", "--help"])
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in EXPERIMENTS)


@pytest.fixture
def without_the_package(monkeypatch):
    """An environment in which the extra isn't installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "senn_reproduce"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotThere(), *sys.meta_path])


class NotThere:
    """Finds the package nowhere."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "senn_reproduce":
            raise ModuleNotFoundError(f"No module named {name!r}", name="senn_reproduce")


class TestWithoutTheExtra:
    @pytest.mark.parametrize(
        ("argv", "subject"),
        [
            (["reproduce", "moons"], "senn reproduce"),
            (["reproduce", "mnist", "--data-dir", "data"], "senn reproduce"),
            (["fit", "mnist"], "the image set 'mnist'"),
            (["fit", "cifar-10", "--dry-run"], "the image set 'cifar-10'"),
        ],
    )
    def test_the_command_says_which_one_it_needs(
        self, without_the_package, tmp_path, capsys, monkeypatch, argv, subject
    ):
        monkeypatch.chdir(tmp_path)
        sentence = "needs the package 'senn-reproduce', which isn't installed: pip install 'senn[reproduce]'"
        assert f"{subject} {sentence}" in refused(capsys, argv)
        assert list(tmp_path.iterdir()) == []

    def test_help_lists_the_experiments_all_the_same(self, without_the_package, capsys):
        with pytest.raises(SystemExit):
            main(["reproduce", "--help"])
        assert "  cifar-cycles " in capsys.readouterr().out


def test_the_command_lists_every_experiment_of_the_package():
    package = pathlib.Path(senn_reproduce.__file__).parent
    experiments = {path.stem for path in package.glob("*.py") if "\ndef main(" in path.read_text()}
    assert {name.replace("-", "_") for name in EXPERIMENTS} == experiments


def test_every_set_of_the_package_is_known_by_name():
    assert tuple(SOURCES) == KNOWN_SETS
    with pytest.raises(
        SennError, match="there are no images 'emnist', but 'mnist', 'cifar-10', 'tiny-imagenet'"
    ):
        load_images("emnist")


def test_both_distributions_have_one_version():
    root = pathlib.Path(__file__).parents[2]
    core, other = (
        tomllib.loads((root / name).read_text())["project"]
        for name in ("pyproject.toml", "reproduce/pyproject.toml")
    )
    assert core["version"] == other["version"] == senn.__version__
    assert core["optional-dependencies"]["reproduce"] == [f"senn-reproduce=={core['version']}"]
    assert f"senn[cli]=={core['version']}" in other["dependencies"]
