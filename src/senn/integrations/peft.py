"""Ranks of LoRA adapters in a Hugging Face Trainer: `Trainer(callbacks=[RankExpansion(max_params=...)])`.

Checkpoints are those of PEFT: their configuration says the ranks. To resume a run, load its adapters first,
`PeftModel.from_pretrained(base, checkpoint, is_trainable=True)`, and give the Trainer that model.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from senn import pytree
from senn._extras import importing
from senn._validate import Rule, check_arguments, each, fraction, whole
from senn.peft import RankAllocator, RankEvent
from senn.pytree import Output, Prepare

with importing("senn.integrations.peft", "peft"):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    from senn.integrations._trainer_calls import check_processes, labeled, logits

__all__ = ["RankExpansion", "causal_lm_loss"]

logger = logging.getLogger("senn")

RANGES: Mapping[str, Rule] = {
    "rounds": each(fraction(), nonempty=True),
    "batches": whole(low=1),
}


def causal_lm_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the next token, as causal language models of transformers compute it from labels.

    Args:
        outputs: logits, (samples, tokens, vocabulary).
        labels: (samples, tokens), -100 where a token doesn't count.
    """
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class RankExpansion(TrainerCallback):
    """Lets the ranks of a model's LoRA adapters grow and shrink while a Trainer trains it.

    Rounds come after optimizer steps, and look at what the model was last called with in training: a hook on its
    forward, which exists only when a round is near, keeps it. `save_pretrained`, which the Trainer calls, writes the
    ranks, so PEFT loads what it saves. If the loss fails in a round, training goes on and a warning says so.

    Args:
        max_params: the budget, most parameters of all adapters together (`senn.peft.uniform_params`).
        rounds: when ranks change, as fractions of the Trainer's `max_steps`.
        batches: number of calls of the model that a round looks at.
        loss: the training loss, `loss(logits, labels)`, a mean over samples; `causal_lm_loss` for language models.
        prepare: makes inputs, targets and perhaps weights of the keyword arguments that the model is called with; None
            for its `labels` as targets.
        output: finds the tensor that the loss takes in what the model returns; None for its `logits`.
        options: further arguments of `senn.peft.RankAllocator`.

    Attributes:
        allocator: the `RankAllocator`, once training has begun: `allocator.rounds` has the records.

    Raises:
        SennError: an argument is out of range; at the start of training also if a rank can't change.
    """

    def __init__(
        self,
        *,
        max_params: int,
        rounds: Sequence[float] = (0.0, 0.1, 0.3),
        batches: int = 4,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        prepare: Prepare | None = None,
        output: Output | None = None,
        **options: Any,
    ) -> None:
        check_arguments(RANGES, locals())
        self.rounds, self.batches = tuple(rounds), batches
        self.allocator: RankAllocator | None = None
        settings = {"loss": loss, "prepare": prepare or labeled, "output": output or logits}
        self._settings = {"max_params": max_params, **settings, **options}
        self._called: deque[dict[str, Any]] = deque(maxlen=batches)
        self._due: list[int] = []
        self._hook: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the adapters, and plan the rounds that are left.

        Args:
            args: arguments of the Trainer.
            state: its state.
            control: not used.
            kwargs: `model`, `optimizer`, and more that isn't used.

        Raises:
            SennError: the model is taken apart, the optimizer doesn't hold the adapters, or a rank can't change.
        """
        check_processes(args)
        self.allocator = RankAllocator(kwargs["model"], kwargs["optimizer"], **self._settings)
        steps = {max(1, round(share * state.max_steps)) for share in self.rounds}
        self._due = sorted(step for step in steps if step > state.global_step)
        self._called.clear()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook the model's forward, to keep what it is called with, if a round is near.

        Args:
            args: not used.
            state: state of the Trainer.
            control: not used.
            kwargs: `model`, and more that isn't used.
        """
        near = self._due and self._due[0] - state.global_step <= self.batches
        if self._hook is not None or not near:
            return
        model = kwargs["model"]

        def keep(module: nn.Module, called: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            if module.training:
                self._called.append(pytree.clone(dict(named)))

        self._hook = model.register_forward_pre_hook(keep, with_kwargs=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run a round if one is due.

        Args:
            args: not used.
            state: state of the Trainer.
            control: not used.
            kwargs: not used.
        """
        if not self._due or state.global_step < self._due[0]:
            return
        self._due.pop(0)
        self._unhook()
        for event in self._adapt(state.global_step):
            logger.info("step %d: %s", state.global_step, event)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hook off.

        Args:
            args: not used.
            state: not used.
            control: not used.
            kwargs: not used.
        """
        self._unhook()

    def _adapt(self, step: int) -> list[RankEvent]:
        assert self.allocator is not None
        batches = [*self._called]
        self._called.clear()
        try:
            return self.allocator.adapt(batches)
        except (
            Exception
        ) as error:  # the loss is the user's; the allocator leaves everything as it was then
            logger.warning("step %d: no ranks changed: %s", step, error)
            return []

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
