"""A model of transformers grows in its own Trainer, and its checkpoints load into a fresh small one."""

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import safetensors.torch
from accelerate import DistributedType, PartialState
from surgery_cases import widen
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import senn
from senn import PricePolicy, SennError
from senn.integrations._trainer_files import SIZES, TENSORS
from senn.integrations.transformers import SelfExpansion, load, save
from senn.surgery import transaction
from senn.surgery.model_config import update_config
from senn.training import TrainConfig

X = torch.randn(128, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0, 0, 0] * X[:, 0, 3, 3] > 0).long() + 2 * (X[:, 0, 1, 2] > 0.3).long()
DATA = [{"pixel_values": x, "labels": y} for x, y in zip(X, Y, strict=True)]
EARLY = TrainConfig(
    addition_rounds=(0.1, 0.3, 0.6),
    pruning_rounds=(),
    max_params=2000,
    policy=PricePolicy(layer_cost=1.0, max_places_per_round=2),
)
ONCE = replace(EARLY, addition_rounds=(0.1,))


def vit(**options):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 3,
        **options,
    }
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(
        ViTConfig(image_size=4, patch_size=2, num_channels=1, num_labels=4, **sizes, **rates)
    )


def fit(folder, expansion, *, resume=None, model=None, trainer_options=None, **options):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=20, per_device_train_batch_size=16, learning_rate=0.02, weight_decay=0.1,
        save_steps=8, report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", **options,
    )  # fmt: skip
    trainer_options = {"callbacks": [expansion] if expansion else [], **(trainer_options or {})}
    trainer = Trainer(model or vit(), arguments, train_dataset=DATA, **trainer_options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def events(expansion, kind):
    return [record for record in expansion.session.history if record["event"] == kind]


def same(one, other):
    """Two states, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def widened(model, *places):
    """Grown by two units at each place."""
    graph = senn.analyze(model, X[:2])
    transaction(model, [widen(model, graph, place, 2) for place in places], graph)
    return model


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of two substeps a step, and where its checkpoints are."""
    folder = tmp_path_factory.mktemp("first")
    expansion = SelfExpansion(EARLY)
    return fit(folder, expansion, gradient_accumulation_steps=2), expansion, folder


def test_it_grows_with_the_trainers_optimizer(first):
    trainer, expansion, _ = first
    assert {record["kind"] for record in events(expansion, "growth")} >= {"widen", "insert"}
    assert [record["step"] for record in events(expansion, "growth_round")] == [2, 6, 12]
    assert not events(expansion, "fault")
    assert parameters(trainer.model) > parameters(vit())
    held = [p for group in trainer.optimizer.optimizer.param_groups for p in group["params"]]
    assert {*held} == {*trainer.model.parameters()}
    assert not trainer.model._forward_pre_hooks


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_goes_on_from_the_checkpoint_of_a_grown_model_bit_for_bit(first, elsewhere, tmp_path):
    trainer, expansion, folder = first
    checkpoint = folder / "checkpoint-8"
    grown = [record["step"] for record in events(expansion, "growth")]
    assert min(grown) < 8 < max(grown)  # it grew before and after
    other = SelfExpansion(EARLY, resume_from=checkpoint if elsewhere else None)
    options = {"save_strategy": "no", "gradient_accumulation_steps": 2}
    options |= {} if elsewhere else {"resume_from_checkpoint": str(checkpoint)}
    again = fit(tmp_path, other, resume=str(checkpoint), **options)
    assert same(trainer.model.state_dict(), again.model.state_dict())
    state, resumed = (one.optimizer.optimizer.state_dict() for one in (trainer, again))
    assert state["param_groups"] == resumed["param_groups"]
    assert all(same(state["state"][number], resumed["state"][number]) for number in state["state"])
    assert expansion.session.history == other.session.history


def test_checkpoints_load_into_a_fresh_small_model(first):
    trainer, _, folder = first
    model = trainer.model.eval()
    fresh = load(folder / "checkpoint-20", vit()).eval()
    assert torch.equal(fresh(X).logits, model(X).logits)
    early = safetensors.torch.load_file(folder / "checkpoint-8" / "model.safetensors")
    again = copy.deepcopy(trainer.model)
    state = copy.deepcopy(again.state_dict())
    trainer.model.load_state_dict(early, strict=False)  # as for the best model at the end
    before = load(folder / "checkpoint-8", vit()).eval()
    assert torch.equal(trainer.model(X).logits, before(X).logits)
    trainer.model.load_state_dict(
        safetensors.torch.load_file(folder / "checkpoint-20" / "model.safetensors"), strict=False
    )
    assert same(trainer.model.state_dict(), state)


def test_numbers_of_the_configuration_follow_where_they_can(tmp_path):
    places = [f"vit.layers.{number}.mlp.fc1" for number in (0, 1)]
    model = widened(vit(num_hidden_layers=2), *places).eval()
    random = torch.random.get_rng_state()
    assert update_config(model)
    assert torch.equal(random, torch.random.get_rng_state())
    assert model.config.intermediate_size == 5
    model.save_pretrained(tmp_path / "even")
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "even").eval()
    assert torch.equal(loaded(X).logits, model(X).logits)
    uneven = widened(vit(num_hidden_layers=2), places[0]).eval()
    assert not update_config(uneven)
    assert uneven.config.intermediate_size == 3
    save(uneven, tmp_path / "uneven")
    assert torch.equal(
        load(tmp_path / "uneven", vit(num_hidden_layers=2)).eval()(X).logits, uneven(X).logits
    )


def test_sizes_that_were_altered_are_refused(tmp_path):
    model = widened(vit(), "vit.layers.0.mlp.fc1")
    save(model, tmp_path)
    document = json.loads((tmp_path / SIZES).read_text())
    (tmp_path / SIZES).write_text(json.dumps({**document, "numbers": {}}))
    with pytest.raises(SennError, match="is damaged: its content doesn't match its checksum"):
        load(tmp_path, vit())
    save(model, tmp_path)
    (tmp_path / TENSORS).write_bytes(bytes((tmp_path / TENSORS).stat().st_size))
    with pytest.raises(
        SennError, match=rf"is damaged: it isn't the file that was written with {SIZES}"
    ):
        load(tmp_path, vit())
    (tmp_path / SIZES).unlink()
    with pytest.raises(SennError, match=rf"doesn't hold both {SIZES} and model.safetensors"):
        load(tmp_path, vit())


def test_it_looks_in_the_precision_of_the_parameters_under_autocast(tmp_path):
    seen = []

    def loss(outputs, targets):
        seen.append(bool((outputs.to(torch.bfloat16).float() == outputs).all()))
        return nn.functional.cross_entropy(outputs, targets)

    expansion = SelfExpansion(ONCE, loss=loss)
    trainer = fit(tmp_path, expansion, bf16=True, save_strategy="no")
    assert events(expansion, "growth")
    assert seen
    assert not any(seen)
    assert vars(trainer.model)["forward"] is not vars(trainer.model)["_original_forward"]
    mixed = trainer.model(X).logits
    assert torch.equal(mixed.to(torch.bfloat16).float(), mixed)


def test_training_goes_on_where_the_labels_are_not_seen(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="senn")
    expansion = SelfExpansion(EARLY)
    states = []
    for one in (expansion, None):
        trainer = fit(tmp_path, one, save_strategy="no", label_smoothing_factor=0.1)
        states.append(trainer.model.state_dict())
    assert same(*states)
    assert [record["step"] for record in events(expansion, "fault")] == [2, 6, 12]
    assert "the model isn't called with labels, as under label smoothing" in caplog.text


def test_a_trainer_that_takes_the_model_apart_is_refused(tmp_path, monkeypatch):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    arguments._n_gpu = 2
    with pytest.raises(
        SennError, match="can't grow under DataParallel: train it in one process or under Dist"
    ):
        SelfExpansion().on_train_begin(arguments, None, None, model=None, optimizer=None)
    arguments._n_gpu = 0
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(
        SennError, match="can't grow under FSDP: train it in one process or under Dist"
    ):
        SelfExpansion().on_train_begin(arguments, None, None, model=None, optimizer=None)


class Own(nn.Module):
    """Can't do without labels."""

    def __init__(self, returns):
        super().__init__()
        self.first, self.last, self.returns = nn.Linear(16, 2), nn.Linear(2, 4), returns

    def forward(self, pixel_values, labels=None):
        scores = self.last(self.first(pixel_values.flatten(1)).relu())
        return self.returns(nn.functional.cross_entropy(scores, labels), scores)


@pytest.mark.parametrize(
    "returns",
    [
        lambda loss, scores: {"loss": loss, "scores": scores},
        lambda loss, scores: (loss, scores),
    ],
)
def test_a_model_that_always_computes_its_loss_grows(returns, tmp_path):
    expansion = SelfExpansion(ONCE)
    torch.manual_seed(0)
    trainer = fit(tmp_path, expansion, model=Own(returns), save_strategy="no")
    assert not events(expansion, "fault")
    assert parameters(trainer.model) > parameters(Own(returns))


class NewClasses(TrainerCallback):
    """Adds two classes in the middle of a run."""

    def __init__(self, expansion):
        self.expansion = expansion

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.expansion.session.change(
                lambda grower: grower.add_outputs(
                    2, names=["left", "right"], batch=({"pixel_values": X[:8]}, Y[:8])
                ),
                4,
            )


def test_new_classes_come_back_with_a_checkpoint(tmp_path):
    expansion = SelfExpansion(ONCE)
    trainer = fit(
        tmp_path / "a",
        expansion,
        trainer_options={"callbacks": [expansion, NewClasses(expansion)]},
    )
    assert trainer.model.config.num_labels == 6
    checkpoint = tmp_path / "a" / "checkpoint-8"
    other = SelfExpansion(ONCE, resume_from=checkpoint)
    resumed = fit(tmp_path / "b", other, resume=str(checkpoint), save_strategy="no")
    for model in (resumed.model, load(checkpoint, into=vit())):
        assert model.num_labels == model.config.num_labels == model.classifier.out_features == 6
        assert model.config.id2label[5] == "right"
        assert model.config.label2id["left"] == 4
        assert model(pixel_values=X[:4], labels=torch.tensor([0, 3, 4, 5])).logits.shape == (4, 6)
    assert same(trainer.model.state_dict(), resumed.model.state_dict())


def test_two_in_one_trainer_are_refused(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(SennError, match="one loop takes one SelfExpansion, and was given several"):
        Trainer(vit(), arguments, train_dataset=DATA, callbacks=[SelfExpansion(), SelfExpansion()])
    trainer = Trainer(vit(), arguments, train_dataset=DATA, callbacks=[SelfExpansion()])
    trainer.add_callback(SelfExpansion())
    with pytest.raises(SennError, match="one loop takes one SelfExpansion, and was given several"):
        trainer.train()


def test_the_old_name_of_the_session_warns():
    expansion = SelfExpansion()
    with pytest.warns(
        DeprecationWarning, match="SelfExpansion.companion is now SelfExpansion.session"
    ):
        session = expansion.companion
    assert session is expansion.session
