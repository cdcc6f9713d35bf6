"""How growth meets `torch.compile`: looking runs uncompiled, and a change drops what was compiled for old sizes.

Dynamo guards on the shapes of parameters, so compiled code is never run on sizes that it wasn't made for. But it keeps
the code of every size, and after `torch._dynamo.config.recompile_limit` of them (8) it raises under `fullgraph=True`,
and otherwise runs the model uncompiled from then on, after one warning.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


def is_dynamo_loaded() -> bool:
    """Return True if anything can have been compiled in this process: importing Dynamo costs a second."""
    return "torch._dynamo" in sys.modules


def run_eagerly() -> AbstractContextManager[object]:
    """Build a context in which compiled modules run their own Python code, which can be watched."""
    return torch.compiler.set_stance("force_eager") if is_dynamo_loaded() else nullcontext()


class WatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Base of modes that watch operations.

    Looking runs uncompiled, so Dynamo has nothing to skip in such a mode. Torch would import it to say so: two seconds
    before the first pass.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def forget_compiled_sizes() -> bool:
    """Drop all compiled code, so that the next call compiles for the sizes of now.

    Dynamo can't drop the code of one model: a training step that calls it is compiled as a whole.

    Returns:
        True if there was any.
    """
    if not is_dynamo_loaded():
        return False
    from torch._dynamo import convert_frame  # no public call tells whether anything is compiled

    if not convert_frame.input_codes.seen:
        return False
    torch.compiler.reset()
    return True


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile(module)`, or the module itself."""
    inner = getattr(model, "_orig_mod", None)
    if type(model).__name__ == "OptimizedModule" and isinstance(inner, nn.Module):
        return inner
    return model
