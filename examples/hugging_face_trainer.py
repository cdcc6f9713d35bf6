"""Grow a BERT in the Trainer of transformers.

A small `BertForSequenceClassification` from its configuration, an unmodified `Trainer`, and one more callback; nothing
is downloaded. The task: are the first and the last letter of a word of the same kind, vowel or consonant? At the end, a
fresh small model resumes from the checkpoint in the middle of the run, and ends with the same numbers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    logging,
)

from senn.integrations.transformers import SelfExpansion
from senn.training import TrainConfig

LETTERS, VOWELS = 12, 5


def words(number: int, seed: int) -> list[dict[str, Any]]:
    """Draw words of six letters, with 1 if the first and the last are of the same kind, else 0."""
    letters = torch.randint(LETTERS, (number, 6), generator=torch.Generator().manual_seed(seed))
    alike = (letters[:, 0] < VOWELS) == (letters[:, -1] < VOWELS)
    return [
        {"input_ids": one, "labels": label}
        for one, label in zip(letters, alike.long(), strict=True)
    ]


def bert() -> BertForSequenceClassification:
    """Build a model of one layer of width 16, with four units in its MLP."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=LETTERS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4,
        max_position_embeddings=6, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def trainer(folder: Path, steps: int, expansion: SelfExpansion) -> Trainer:
    """Set up an ordinary Trainer for a small model."""
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=64, learning_rate=5e-3,
        lr_scheduler_type="cosine", warmup_steps=20, save_steps=steps // 2, logging_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip
    data = words(4000, seed=0)
    made = Trainer(bert(), arguments, train_dataset=data, callbacks=[expansion])
    made.remove_callback(PrinterCallback)  # its figures would hide the changes of size
    return made


@torch.no_grad()
def accuracy(model: BertForSequenceClassification) -> float:
    """Compute the accuracy on other words."""
    test = words(1000, seed=1)
    model.eval()
    logits = model(torch.stack([one["input_ids"] for one in test])).logits
    return float((logits.argmax(1) == torch.stack([one["labels"] for one in test])).float().mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Print each change of size, the held-out accuracy, and that a resumed run ends with the same numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    recipe = TrainConfig(
        addition_rounds=(0.02, 0.05, 0.1, 0.2, 0.3),
        pruning_rounds=(),
        max_params=5000,
        max_scoring_samples=512,
    )
    with tempfile.TemporaryDirectory() as name:
        folder, expansion = Path(name), SelfExpansion(recipe)
        whole = trainer(folder, arguments.steps, expansion)
        whole.train()
        for record in expansion.session.history:
            if record["event"] == "growth":
                print(f"step {record['step']}: {record['text']}")
        resumed = trainer(folder, arguments.steps, SelfExpansion(recipe))
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{arguments.steps // 2}"))
    start, end = (sum(p.numel() for p in model.parameters()) for model in (bert(), whole.model))
    print(f"{start:,} -> {end:,} parameters, held-out accuracy {accuracy(whole.model):.4f}")
    same = all(
        torch.equal(a, b)
        for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    )
    print(
        f"resumed from step {arguments.steps // 2} in a fresh small model: {'the same' if same else 'another'} model"
    )


if __name__ == "__main__":
    main()
