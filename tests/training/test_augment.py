"""Images on their way into a network."""

from __future__ import annotations

import torch

from senn.training.augment import augment


def test_shifted_images_lie_in_memory_as_those_that_came_in():
    """torch 2.13 writes outside of its memory for channels last, in the backward pass of a narrow residual net."""
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    found = augment(x, torch.Generator().manual_seed(0), shift=2)
    assert found.stride() == x.stride()
    assert torch.equal(augment(x, torch.Generator(), shift=0, flip=False), x)
