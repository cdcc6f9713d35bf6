"""Tables, series, operators and diffusion: models of packages for one purpose."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wild_models.registry import Batch, Models, Wild, images, load, made, several, vectors

MODELS: Models = {}

_SINGLE = ("neuraloperator", "nbeats-pytorch")
"""Packages whose code makes float32 numbers of its own."""


def _add(name: str, package: str, target: str, batch: Batch, *args: Any, **settings: Any) -> None:
    model = made(target, *args, **settings)
    dtype = torch.float32 if package in _SINGLE else torch.float64
    MODELS[name] = Wild(package=package, model=model, batch=batch, dtype=dtype)


def _steps(n: int) -> Tensor:
    """Random steps of a diffusion."""
    return torch.randint(100, (n,))


def _times(n: int) -> Tensor:
    """Random times of a diffusion."""
    return torch.rand(n)


def _fully_connected() -> nn.Module:
    network = load("e3nn.nn:FullyConnectedNet")
    model: nn.Module = network([4, 8, 8, 2], torch.nn.functional.silu)
    return model


_add(
    "diffusion-unet",
    "denoising-diffusion-pytorch",
    "denoising_diffusion_pytorch:Unet",
    several(images(8), _times),
    dim=8,
    dim_mults=(1, 2),
    channels=3,
    attn_dim_head=8,
    attn_heads=2,
    flash_attn=False,
)
_add(
    "diffusers-unet2d",
    "diffusers",
    "diffusers:UNet2DModel",
    several(images(8), _steps),
    sample_size=8,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=8,
)
_add(
    "neuralop-fno",
    "neuraloperator",
    "neuralop.models:FNO",
    images(8, 1),
    n_modes=(4, 4),
    in_channels=1,
    out_channels=1,
    hidden_channels=8,
    n_layers=2,
)
_add(
    "pykan-kan",
    "pykan",
    "kan:MultKAN",
    vectors(2),
    width=[2, 3, 1],
    grid=3,
    k=3,
    auto_save=False,
    symbolic_enabled=False,
    device="cpu",
)
_add(
    "nbeats",
    "nbeats-pytorch",
    "nbeats_pytorch.model:NBeatsNet",
    vectors(6),
    device=torch.device("cpu"),
    forecast_length=2,
    backcast_length=6,
    hidden_layer_units=8,
    thetas_dim=(4, 4),
    nb_blocks_per_stack=2,
)
_add(
    "rtdl-resnet",
    "rtdl-revisiting-models",
    "rtdl_revisiting_models:ResNet",
    vectors(6),
    d_in=6,
    d_out=2,
    n_blocks=2,
    d_block=8,
    d_hidden=12,
    d_hidden_multiplier=None,
    dropout1=0.1,
    dropout2=0.0,
)
_add(
    "rtdl-mlp",
    "rtdl-revisiting-models",
    "rtdl_revisiting_models:MLP",
    vectors(6),
    d_in=6,
    d_out=2,
    n_blocks=2,
    d_block=8,
    dropout=0.1,
)
_add(
    "rtdl-ft-transformer",
    "rtdl-revisiting-models",
    "rtdl_revisiting_models:FTTransformer",
    several(vectors(4), lambda n: torch.randint(3, (n, 2))),
    n_cont_features=4,
    cat_cardinalities=[3, 3],
    d_out=2,
    n_blocks=2,
    d_block=16,
    attention_n_heads=2,
    attention_dropout=0.1,
    ffn_d_hidden=24,
    ffn_d_hidden_multiplier=None,
    ffn_dropout=0.1,
    residual_dropout=0.0,
)
_add(
    "diffusers-autoencoder-kl",
    "diffusers",
    "diffusers:AutoencoderKL",
    images(16),
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
    up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    norm_num_groups=4,
)
_add(
    "diffusers-dit",
    "diffusers",
    "diffusers:DiTTransformer2DModel",
    several(images(8), _steps, lambda n: torch.randint(5, (n,))),
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=3,
    num_layers=2,
    sample_size=8,
    norm_num_groups=4,
    num_embeds_ada_norm=5,
)
MODELS["e3nn-mlp"] = Wild(package="e3nn", model=_fully_connected, batch=vectors(4))
