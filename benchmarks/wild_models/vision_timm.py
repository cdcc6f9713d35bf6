"""Models of timm, most of them made narrow by their own settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from wild_models.registry import Models, Wild, images, load, made

MODELS: Models = {}


def _timm(name: str, size: int = 32, **settings: Any) -> None:
    """Add a model by its name in timm."""
    MODELS[f"timm-{name}"] = Wild(
        package="timm",
        model=made("timm:create_model", name, num_classes=5, **settings),
        batch=images(size),
    )


def _class(name: str, target: str, size: int = 16, **settings: Any) -> None:
    """Add a model by its class."""
    MODELS[f"timm-{name}"] = Wild(
        package="timm",
        model=made(f"timm.models.{target}", num_classes=5, **settings),
        batch=images(size),
    )


def _narrow_blocks() -> nn.Module:
    """A ResNeXt of one narrow block for each of its stages."""
    blocks = load("timm.models.byobnet:model_cfgs")["resnext26ts"]
    chosen = tuple(replace(block, d=1, c=block.c // 16, gs=8) for block in blocks.blocks)
    config = replace(blocks, blocks=chosen, stem_chs=16)
    model: nn.Module = load("timm.models.byobnet:ByobNet")(config, num_classes=5)
    return model


def _narrow_branches() -> nn.Module:
    """A RepVGG of one narrow block for each of its stages."""
    blocks = load("timm.models.byobnet:model_cfgs")["repvgg_a0"]
    chosen = tuple(replace(block, d=1, c=block.c // 8) for block in blocks.blocks)
    config = replace(blocks, blocks=chosen, stem_chs=8)
    model: nn.Module = load("timm.models.byobnet:ByobNet")(config, num_classes=5)
    return model


def _norm_free() -> nn.Module:
    """A norm-free ResNet of one narrow block for each of its stages."""
    config = load("timm.models.nfnet:model_cfgs")["nf_resnet26"]
    config = replace(config, depths=_ONES, channels=(16, 32, 48, 64), num_features=0)
    model: nn.Module = load("timm.models.nfnet:NormFreeNet")(config, num_classes=5)
    return model


def _ghost() -> nn.Module:
    config = load("timm.models.ghostnet:GhostNet")
    stages = [[[3, 16, 16, 0, 1]], [[3, 48, 24, 0.25, 2]], [[5, 72, 40, 0.25, 2]]]
    model: nn.Module = config(stages, width=0.5, num_classes=5)
    return model


_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
_SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
_FOUR = (8, 16, 24, 32)
_SEQUENCED = {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 16), "hidden_sizes": (4, 8, 8, 8)}
_ONES = (1, 1, 1, 1)

_timm("resnet26d", channels=_FOUR, stem_width=8)
_timm("vit_tiny_patch16_224", **_VIT)
_timm("deit3_small_patch16_224", **_VIT)
_timm("convnext_atto", depths=_ONES, dims=_FOUR)
_LEVIT = {"embed_dim": (16, 24, 32), "key_dim": 4, "depth": (1, 1, 1), "num_heads": (2, 3, 4)}
_timm("swin_tiny_patch4_window7_224", **_SWIN)
_class("mixer", "mlp_mixer:MlpMixer", img_size=16, patch_size=4, num_blocks=2, embed_dim=16)
_class("convmixer", "convmixer:ConvMixer", dim=16, depth=2, kernel_size=3, patch_size=4)
_class("poolformer", "metaformer:MetaFormer", 32, depths=_ONES, dims=_FOUR)
_class("levit", "levit:Levit", 64, img_size=64, **_LEVIT)
MODELS["timm-resnext"] = Wild(package="timm", model=_narrow_blocks, batch=images(32))
MODELS["timm-repvgg"] = Wild(package="timm", model=_narrow_branches, batch=images(32))
MODELS["timm-nf_resnet"] = Wild(package="timm", model=_norm_free, batch=images(32))
MODELS["timm-ghostnet"] = Wild(package="timm", model=_ghost, batch=images(32))

_DEEP = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
_class("beit", "beit:Beit", **_DEEP)
_class("eva", "eva:Eva", **_DEEP)
_class("cait", "cait:Cait", **_DEEP)
_class("densenet", "densenet:DenseNet", 32, growth_rate=4, block_config=(2, 2), bn_size=2)
_class("mambaout", "mambaout:MambaOut", 32, depths=_ONES, dims=_FOUR)
_class("inception_next", "inception_next:MetaNeXt", 32, depths=_ONES, dims=_FOUR)
_class("starnet", "starnet:StarNet", 32, base_dim=8, depths=[1, 1, 1, 1])
_class("focalnet", "focalnet:FocalNet", 32, embed_dim=8, depths=(1, 1), focal_levels=(2, 2))
_class("repvit", "repvit:RepVit", 32, embed_dim=(8, 16), depth=(1, 1))
_class("pvt_v2", "pvt_v2:PyramidVisionTransformerV2", 32, depths=_ONES, embed_dims=_FOUR)
_class("twins", "twins:Twins", 32, img_size=32, depths=_ONES, embed_dims=_FOUR)
_class("davit", "davit:DaVit", 32, depths=(1, 1), embed_dims=(8, 16), num_heads=(2, 4))
_class("sequencer", "sequencer:Sequencer2d", 28, img_size=28, **_SEQUENCED)
_class("edgenext", "edgenext:EdgeNeXt", 64, dims=(8, 16, 24, 32), depths=_ONES, heads=(2, 2, 2, 2))
_class("rexnet", "rexnet:RexNet", 32, initial_chs=8, final_chs=24, depth_mult=0.5, width_mult=0.5)
_class("vgg", "vgg:VGG", 32, cfg=[8, "M", 16, "M"], mlp_ratio=0.01)
