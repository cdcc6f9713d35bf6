"""Ranks of adapters change in a Trainer, whose checkpoints PEFT loads; real architectures, at random weights."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from senn import SennError  # noqa: E402
from senn.integrations.peft import RankExpansion, causal_lm_loss  # noqa: E402
from senn.peft import RankAllocator, find_pairs, uniform_params  # noqa: E402

TOKENS = torch.randint(3, 20, (32, 6), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": (row * 7) % 20} for row in TOKENS]
SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=16)
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(**SIZES, num_labels=3, max_position_embeddings=16)
    return transformers.BertForSequenceClassification(config)


def vit() -> nn.Module:
    sizes = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    config = transformers.ViTConfig(**sizes, image_size=4, patch_size=2, num_labels=3)
    return transformers.ViTForImageClassification(config)


def adapted(base: Any, seed: int = 0, **config: Any) -> nn.Module:
    torch.manual_seed(seed)
    settings = {"r": 1, "lora_alpha": 2, "target_modules": "all-linear"} | config
    return peft.get_peft_model(base(), peft.LoraConfig(**settings))


def fit(model: nn.Module, folder: Path, callback: Any, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=8, per_device_train_batch_size=8, learning_rate=0.02, save_steps=4,
        report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=DATA, callbacks=[callback])
    trainer.train(**options)
    return trainer


PIXELS = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(4))
CASES: dict[str, Any] = {
    "llama": (llama, {"input_ids": TOKENS}, TOKENS, causal_lm_loss),
    "gpt2": (gpt2, {"input_ids": TOKENS}, TOKENS, causal_lm_loss),
    "bert": (bert, {"input_ids": TOKENS}, TOKENS[:, 0] % 3, F.cross_entropy),
    "vit": (
        vit,
        {"pixel_values": torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(4))},
        TOKENS[:, 0] % 3,
        F.cross_entropy,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_adapters_of_real_architectures_get_ranks_and_load(name: str, tmp_path: Path) -> None:
    base, inputs, targets, loss = CASES[name]
    model = adapted(base)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    allocator = RankAllocator(model, optimizer, loss, max_params=uniform_params(model, 3))
    assert allocator.adapt([(inputs, targets)])
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    with torch.no_grad():
        mine, its = model.eval()(**inputs).logits, loaded(**inputs).logits
        assert torch.equal(mine, its)
        torch.testing.assert_close(loaded.merge_and_unload()(**inputs).logits, mine)


def test_padding_counts_for_nothing() -> None:
    rows = torch.arange(16)
    padded = {
        "input_ids": F.pad(TOKENS[:16], (0, 3)),
        "attention_mask": F.pad(torch.ones(16, 6), (0, 3)).long(),
    }
    found = []
    for inputs in ({"input_ids": TOKENS[:16], "attention_mask": torch.ones(16, 6).long()}, padded):
        model = adapted(bert)
        allocator = RankAllocator(model, None, max_params=uniform_params(model, 2))
        found.append(allocator.score([(inputs, rows % 3)]))
    for name, scores in found[0].items():
        torch.testing.assert_close(
            torch.tensor(scores.decreases[:1]),
            torch.tensor(found[1][name].decreases[:1]),
            rtol=0.05,
            atol=1e-5,
        )


def test_ranks_change_in_a_trainer_and_its_checkpoint_goes_on(tmp_path: Path) -> None:
    model = adapted(llama)
    callback = RankExpansion(
        max_params=uniform_params(model, 3), rounds=(0.0, 0.7), batches=2, loss=causal_lm_loss
    )
    trainer = fit(model, tmp_path, callback)
    assert callback.allocator.rounds
    assert not model._forward_pre_hooks
    ranks = {pair.name: pair.rank for pair in find_pairs(trainer.model)}
    assert max(ranks.values()) > 1
    torch.manual_seed(0)
    last = peft.PeftModel.from_pretrained(llama(), tmp_path / "checkpoint-8").eval()
    with torch.no_grad():
        assert torch.equal(last(input_ids=TOKENS).logits, model.eval()(input_ids=TOKENS).logits)
    # the run that was broken off after four steps ends as this one did
    torch.manual_seed(0)
    resumed = peft.PeftModel.from_pretrained(llama(), tmp_path / "checkpoint-4", is_trainable=True)
    again = RankExpansion(
        max_params=uniform_params(model, 3), rounds=(0.0, 0.7), batches=2, loss=causal_lm_loss
    )
    fit(resumed, tmp_path / "again", again, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for one, other in zip(resumed.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_loss_that_fails_ends_no_training(tmp_path: Path, caplog: Any) -> None:
    def fails(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no loss today")

    model = adapted(llama)
    before = copy.deepcopy([one.shape for one in model.parameters()])
    with caplog.at_level(logging.WARNING, logger="senn"):
        logging.getLogger("senn").propagate = True
        fit(model, tmp_path, RankExpansion(max_params=10**4, rounds=(0.0,), loss=fails))
    assert "no ranks changed" in caplog.text
    assert [one.shape for one in model.parameters()] == before
    with pytest.raises(SennError, match="rounds must be"):
        RankExpansion(max_params=10, rounds=(2.0,))
