"""What a run records reaches the loggers that people have: read back from what these wrote."""

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from senn.training import TrainConfig, train
from senn.training.loggers import LoggerCallback, growth_image

fabric = pytest.importorskip("lightning.fabric.loggers")
pl = pytest.importorskip("lightning.pytorch")

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def fit(loggers):
    """The records of a run of a Trainer with these loggers, in which one round fails."""
    from senn.integrations.lightning import SelfExpansion

    torch.manual_seed(0)
    calls = []

    def prepare(batch):
        calls.append(batch)
        return batch if len(calls) > 2 else None

    expansion = SelfExpansion(
        TrainConfig(addition_rounds=(0.05, 0.3, 0.6), pruning_rounds=()), prepare=prepare
    )
    trainer = pl.Trainer(
        max_epochs=4, logger=loggers, callbacks=[expansion], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, accelerator="cpu", log_every_n_steps=5,
    )  # fmt: skip
    trainer.fit(Net(), DataLoader(TensorDataset(X, Y), batch_size=20))
    history = expansion.session.history
    assert (
        next(record["event"] for record in history if record["event"] in ("fault", "growth"))
        == "fault"
    )
    assert sum(record["event"] == "growth" for record in history) > 1
    return history


def expected(history):
    """Scalars by name and step."""
    found = {}
    for record in history:
        step = record["step"]
        if record["event"] == "growth_round":
            found["senn/eta", step] = record["eta"]
            found |= {
                (f"senn/eta_by_map/{name}", step): value
                for name, value in record["eta_by_map"].items()
            }
            margins = [
                one["margin"]
                for one in (*record["accepted"], *record["refused"])
                if one["kind"] == "widen"
            ]
            found["senn/best/widen/margin", step] = max(margins)
        elif record["event"] == "growth":
            found["senn/growth/expected_decrease", step] = record["expected_decrease"]
            found |= {
                (f"senn/width/{n}", step): float(w) for n, w in enumerate(record["architecture"])
            }
            found["senn/parameters", step] = record["size"]
            if record["realized_decrease"] is not None:
                key = "senn/growth/realized_decrease", step
                found[key] = found.get(key, 0.0) + record["realized_decrease"]
    return found


def texts(history):
    return [(r["step"], r["text"]) for r in history if r["event"] in ("growth", "fault")]


def test_tensorboard_has_scalars_texts_and_a_figure(tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.loggers.TensorBoardLogger(tmp_path)
    history = fit([logger])
    events = EventAccumulator(
        logger.log_dir, size_guidance={"tensors": 0, "images": 0, "scalars": 0}
    ).Reload()
    scalars = {
        (tag, one.step): one.value
        for tag in events.Tags()["scalars"]
        for one in events.Scalars(tag)
    }
    wanted = expected(history)
    assert wanted.keys() <= scalars.keys()
    assert all(scalars[key] == pytest.approx(value, rel=1e-5) for key, value in wanted.items())
    said = [
        (one.step, one.tensor_proto.string_val[0].decode())
        for one in events.Tensors("senn/events/text_summary")
    ]
    for step, text in texts(history):
        assert any(at == step and text in one for at, one in said)
    (image,) = events.Images("senn/growth")
    assert (image.width, image.height) == (1100, 990)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_the_scalars(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    history = fit([logger])
    written = rows(logger.experiment.metrics_file_path)
    for (name, step), value in expected(history).items():
        found = [float(row[name]) for row in written if row["step"] == str(step) and row.get(name)]
        assert pytest.approx(value) in found, (name, step)
    assert any(row["loss"] for row in written)  # the Trainer's own are there too


def test_a_table_trains_with_fabrics_loggers(tmp_path):
    logger = fabric.CSVLogger(tmp_path)
    run = train(X, Y, task="classification", outputs=2, recipe=TrainConfig(epochs=6),
                callbacks=[LoggerCallback(logger)])  # fmt: skip
    written = rows(logger.experiment.metrics_file_path)
    epochs = [record for record in run.history if record["event"] == "epoch"]
    losses = {
        row["step"]: float(row["senn/train_loss"]) for row in written if row["senn/train_loss"]
    }
    assert losses == {str(record["step"]): record["train_loss"] for record in epochs}
    assert float(written[0]["senn/width/0"]) == 64
    sizes = [float(row["senn/parameters"]) for row in written if row["senn/parameters"]]
    assert sizes[-1] == epochs[-1]["parameters"]


def test_wandb_has_scalars_texts_and_a_figure(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = pl.loggers.WandbLogger(save_dir=tmp_path, offline=True)
    history = fit([logger])
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    last = [record for record in history if record["event"] == "growth_round"][-1]
    assert summary["senn/eta"] == last["eta"]
    assert summary["senn/growth"]["_type"].startswith("image")
    (picture,) = tmp_path.glob("wandb/offline-*/files/media/images/senn/*.png")
    assert picture.stat().st_size > 10_000
    tables = [
        json.loads(path.read_text())
        for path in tmp_path.glob("wandb/offline-*/files/media/table/senn/*.json")
    ]
    said = [(step, text) for table in tables for step, text in table["data"]]
    assert all(
        any(at == step and one.endswith(text) for at, one in said) for step, text in texts(history)
    )


def test_mlflow_has_scalars_texts_and_a_figure(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = pl.loggers.MLFlowLogger(tracking_uri=f"file:{tmp_path}")
    history = fit([logger])
    client, run = logger.experiment, logger.run_id
    for (name, step), value in expected(history).items():
        assert (step, pytest.approx(value)) in [
            (one.step, one.value) for one in client.get_metric_history(run, name)
        ]
    folder = next(tmp_path.glob(f"*/{run}/artifacts"))
    written = "\n".join(path.read_text() for path in folder.rglob("*.txt"))
    assert all(text in written for _, text in texts(history))
    from matplotlib.image import imread

    assert imread(folder / "senn" / "growth.png").shape[:2] == (990, 1100)


def test_what_is_not_finite_is_left_out():
    class Ours:
        def __init__(self):
            self.metrics = []

        def log_metrics(self, metrics, step):
            self.metrics.append((metrics, step))

    logger = Ours()
    callback = LoggerCallback(logger)
    callback.on_start({"event": "start", "step": 0, "architecture": [3], "parameters": 7})
    record = {"train_loss": np.inf, "validation_loss": None, "validation_score": 0.5, "lr": 0.1}
    callback.on_epoch(
        {"event": "epoch", "step": 4, "epoch": 1, "architecture": [3], "parameters": 7, **record}
    )
    callback.on_end({"event": "end"})
    assert logger.metrics == [
        ({"senn/width/0": 3.0, "senn/parameters": 7.0}, 0),
        (
            {
                "senn/validation_score": 0.5,
                "senn/lr": 0.1,
                "senn/width/0": 3.0,
                "senn/parameters": 7.0,
            },
            4,
        ),
    ]


def test_a_run_that_goes_on_is_drawn_from_its_beginning(tmp_path):
    from senn.integrations.lightning import SelfExpansion

    recipe, made = TrainConfig(addition_rounds=(0.05, 0.6), pruning_rounds=()), []
    for path in (None, tmp_path / "epoch=1.ckpt"):
        torch.manual_seed(0)
        expansion, logger = SelfExpansion(recipe), pl.loggers.CSVLogger(tmp_path)
        kept = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = pl.Trainer(
            max_epochs=4, logger=logger, callbacks=[expansion, kept], enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, log_every_n_steps=50,
        )  # fmt: skip
        trainer.fit(Net(), DataLoader(TensorDataset(X, Y), batch_size=20), ckpt_path=path)
        (listener,) = expansion.session.callbacks
        steps = [
            int(row["step"])
            for row in rows(logger.experiment.metrics_file_path)
            if row.get("senn/eta")
        ]
        made.append((listener.history, steps))
    (whole, steps), (history, later) = made
    assert whole == history
    assert (steps, later) == ([2, 24], [24])


def test_widths_are_drawn_from_the_start_which_the_first_round_tells():
    pytest.importorskip("matplotlib")
    history = fit([])
    first = next(record for record in history if record["event"] == "growth_round")
    assert first["step"] == 12
    assert first["architecture"] == [2]
    left = growth_image(history)[:300, 150:450]  # of the upper panel, what is before that step
    assert (left == (31, 119, 180)).all(2).any(0).all()
