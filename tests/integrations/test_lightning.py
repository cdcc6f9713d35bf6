"""A LightningModule grows in its own Trainer, and its checkpoints load into a fresh small one."""

import functools
import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("lightning.pytorch")

from growth_cases import Take  # noqa: E402
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from senn import SennError  # noqa: E402
from senn.integrations.lightning import SelfExpansion, load_from_checkpoint  # noqa: E402
from senn.training import TrainConfig  # noqa: E402

X = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long() + 2 * (X[:, 2] > 0.3).long()
EARLY = TrainConfig(addition_rounds=(0.1, 0.2, 0.4, 0.6), pruning_rounds=(0.8,))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)
    warnings.filterwarnings("ignore")


class Net(pl.LightningModule):
    """Two groups of parameters by kind, and a schedule by steps."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 4))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.02)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=int(steps))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loader():
    return DataLoader(TensorDataset(X, Y), batch_size=32)


def fit(callbacks, module=None, *, ckpt_path=None, epochs=6, **options):
    torch.manual_seed(0)
    module = module or Net()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, **options}
    options |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, **options)
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer, module


@functools.cache
def alone():
    """What a run without growth ends with."""
    return fit([])[1].state_dict()


def width(module):
    """Of the layer before the last."""
    return [m for m in module.modules() if isinstance(m, nn.Linear)][-1].in_features


def same(one, other):
    """Two states, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def keeping(path, **options):
    return ModelCheckpoint(path, filename="{epoch}", save_top_k=-1, **options)


def events(expansion, kind):
    return [record for record in expansion.session.history if record["event"] == kind]


def test_a_run_goes_on_from_the_checkpoint_of_a_grown_module_bit_for_bit(tmp_path):
    runs = []
    for path in (None, tmp_path / "epoch=2.ckpt"):
        expansion, average = SelfExpansion(EARLY), EMAWeightAveraging(decay=0.8)
        callbacks = [expansion, average, keeping(tmp_path if path is None else tmp_path / "second")]
        options = {
            "gradient_clip_val": 0.5,
            "accumulate_grad_batches": 2,
            "enable_checkpointing": True,
        }
        trainer, module = fit(callbacks, ckpt_path=path, **options)
        runs.append((trainer, module, expansion, average))
    (trainer, module, expansion, average), (again, resumed, other, mean) = runs
    saved = torch.load(
        tmp_path / "epoch=2.ckpt", weights_only=True
    )  # plain values and tensors alone
    grown = [record["step"] for record in events(expansion, "growth")]
    assert saved["global_step"] == 12
    assert min(grown) < 12 < max(grown)  # it grew before and after
    assert {record["kind"] for record in events(expansion, "growth")} >= {"widen", "insert"}
    assert same(module.state_dict(), resumed.state_dict())
    assert same(average._average_model.state_dict(), mean._average_model.state_dict())
    first, second = (one.optimizers[0].state_dict() for one in (trainer, again))
    assert first["param_groups"] == second["param_groups"]
    assert all(same(first["state"][number], second["state"][number]) for number in first["state"])
    assert expansion.session.history == other.session.history
    assert all(record["realized_decrease"] is not None for record in events(other, "growth")[:-1])


def test_batches_kept_for_a_round_survive_a_break_in_between(tmp_path):
    recipe = TrainConfig(
        addition_rounds=(0.4,), pruning_rounds=(), max_scoring_samples=160
    )  # five batches up to step 19; the second epoch ends at 16
    states = []
    for path in (None, tmp_path / "epoch=1.ckpt"):
        expansion = SelfExpansion(recipe)
        kept = keeping(tmp_path if path is None else tmp_path / "second")
        _, module = fit([expansion, kept], ckpt_path=path, enable_checkpointing=True)
        assert [record["step"] for record in events(expansion, "growth_round")] == [19]
        assert events(expansion, "growth_round")[0]["n_samples_seen"] == 160
        states.append(module.state_dict())
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["callbacks"]["SelfExpansion"]
    assert len(saved["held"]) == 2
    assert same(*states)


def test_rounds_come_after_optimizer_steps_only():
    seen = []

    class Watched(SelfExpansion):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            before = len(events(self, "growth_round"))
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if len(events(self, "growth_round")) > before:
                seen.append((trainer.global_step, batch_idx))

    expansion = Watched(EARLY)
    fit([expansion], accumulate_grad_batches=4)
    assert [step for step, _ in seen] == [1, 2, 5, 7, 10]
    assert all(index % 4 == 3 for _, index in seen)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_it_grows_in_mixed_precision(precision):
    options = {"precision": precision}
    if precision == "16-mixed":  # Lightning itself has a scaler on GPUs only
        options = {
            "plugins": MixedPrecision(
                "16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0)
            )
        }
    expansion = SelfExpansion(EARLY)
    trainer, module = fit([expansion], **options)
    assert events(expansion, "growth")
    assert not events(expansion, "fault")
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    held = {p for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {*module.parameters()}
    assert all(torch.isfinite(p).all() for p in module.parameters())


def failing(outputs, targets):
    raise ZeroDivisionError("no loss today\nsecond line")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"loss": failing}, "the round was skipped: ZeroDivisionError: no loss today"),
        ({"prepare": lambda batch: batch[0]["x"]}, "the round was skipped: TypeError"),
        (
            {"prepare": lambda batch: (batch[0], "label")},
            " and a str",
        ),
        ({"loss": nn.MSELoss()}, "the round was skipped: "),
    ],
)
def test_training_goes_on_where_looking_fails(options, text, caplog):
    expansion = SelfExpansion(EARLY, **options)
    _, module = fit([expansion])
    assert same(module.state_dict(), alone())
    assert [record["step"] for record in events(expansion, "fault")] == [5, 10, 19, 29, 38]
    assert all(text in record["text"] for record in events(expansion, "fault"))
    assert text in caplog.text


class Strange(torch.optim.SGD):
    """Keeps a state whose shape follows its parameter's by no rule."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["past"] = torch.zeros(parameter.numel() % 7 + 2, 5)
        return loss


def test_an_optimizer_whose_state_cannot_follow_is_refused_before_the_first_step():
    class Odd(Net):
        def configure_optimizers(self):
            return Strange(self.parameters(), lr=0.1)

    with pytest.raises(SennError, match="'past' in the state of Strange has shape"):
        fit([SelfExpansion(EARLY)], Odd())


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_loads_into_a_fresh_small_module(tmp_path, weights_only):
    _, module = fit(
        [SelfExpansion(EARLY), keeping(tmp_path, save_weights_only=weights_only)],
        enable_checkpointing=True,
    )
    fresh = load_from_checkpoint(tmp_path / "epoch=5.ckpt", Net())
    assert width(fresh) > 2
    assert torch.equal(fresh(X), module(X))
    other = Net()
    trainer = pl.Trainer(
        callbacks=[SelfExpansion()], logger=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.validate(other, loader(), ckpt_path=tmp_path / "epoch=5.ckpt", verbose=False)
    assert torch.equal(other(X), module(X))


def test_a_grown_module_goes_back_to_a_checkpoint_of_before(tmp_path):
    recipe = TrainConfig(addition_rounds=(0.1, 0.7), pruning_rounds=(), policy=Take("insert"))
    trainer, module = fit([SelfExpansion(recipe), EMAWeightAveraging(decay=0.5), keeping(tmp_path)],
                          enable_checkpointing=True)  # fmt: skip
    late, early = (
        torch.load(tmp_path / f"epoch={n}.ckpt", weights_only=True)["current_model_state"]
        for n in (5, 1)
    )
    assert len(late) > len(early)  # a layer came in between
    trainer.test(module, loader(), ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    assert same(module.state_dict(), early)


def test_a_part_grows_with_the_average_that_the_module_keeps(tmp_path):
    class Averaging(Net):
        def __init__(self):
            super().__init__()
            self.mean = AveragedModel(self.net)
            self.mean.requires_grad_(False)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.mean.update_parameters(self.net)

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), lr=0.02)

    expansion = SelfExpansion(EARLY, model="net")
    torch.manual_seed(0)
    _, module = fit([expansion, keeping(tmp_path)], Averaging(), enable_checkpointing=True)
    assert width(module.net) > 2
    assert [p.shape for p in module.mean.module.parameters()] == [
        p.shape for p in module.net.parameters()
    ]
    with pytest.raises(
        SennError, match=r"keeps the average 'mean' of a part of it: name that by model="
    ):
        fit([SelfExpansion(EARLY)], Averaging())
    torch.manual_seed(0)
    other = SelfExpansion(EARLY, model="net")
    _, resumed = fit([other], Averaging(), ckpt_path=tmp_path / "epoch=2.ckpt")
    assert same(module.state_dict(), resumed.state_dict())


def test_nothing_is_left_on_the_module(tmp_path):
    class Broken(Net):
        def on_train_epoch_end(self):
            raise OSError("disk full")

    module = Broken()
    with pytest.raises(OSError, match="disk full"):
        fit([SelfExpansion(EARLY)], module)
    _, other = fit([SelfExpansion(EARLY)])
    for one in (module, other):
        assert not {"on_load_checkpoint", "on_save_checkpoint"} & vars(one).keys()
        assert not one._forward_pre_hooks
        assert not one._load_state_dict_pre_hooks


def test_what_cannot_be_is_said_at_the_start(tmp_path):
    class Two(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            first, last = self.net[0], self.net[2]
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (first, last)]

    with pytest.raises(
        SennError, match="2 optimizers hold parameters of what is to grow, and it takes one"
    ):
        fit([SelfExpansion()], Two())
    with pytest.raises(SennError, match="a Net has no part 'head' that could grow"):
        fit([SelfExpansion(model="head")])
    apart = pl.Trainer(
        accelerator="cpu", devices=2, strategy=pl.strategies.ModelParallelStrategy(), logger=False
    )
    with pytest.raises(
        SennError,
        match="can't grow under Lightning's ModelParallelStrategy: train it in one process",
    ):
        SelfExpansion().setup(apart, Net(), "fit")
    fit([keeping(tmp_path)], epochs=1, enable_checkpointing=True)
    with pytest.raises(
        SennError, match=r"holds no sizes: it wasn't written with .*lightning\.SelfExpansion"
    ):
        load_from_checkpoint(tmp_path / "epoch=0.ckpt", Net())


def test_two_in_one_trainer_are_refused():
    with pytest.raises(SennError, match="one loop takes one SelfExpansion, and was given several"):
        fit([SelfExpansion(EARLY), SelfExpansion(EARLY)])


def test_the_old_name_of_the_session_warns():
    expansion = SelfExpansion()
    with pytest.warns(
        DeprecationWarning, match="SelfExpansion.companion is now SelfExpansion.session"
    ):
        session = expansion.companion
    assert session is expansion.session
