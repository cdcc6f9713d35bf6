"""Models of images: torchvision, segmentation, and vision transformers of other packages than timm."""

from __future__ import annotations

from typing import Any

from torch import nn

from wild_models.registry import Batch, Models, Wild, images, load, made

MODELS: Models = {}


def _add(name: str, package: str, target: str, batch: Batch, *args: Any, **settings: Any) -> None:
    model = made(target, *args, **settings)
    MODELS[name] = Wild(package=package, model=model, batch=batch)


def _torchvision(name: str, target: str, size: int, **settings: Any) -> None:
    target = f"torchvision.models.{target}"
    _add(f"torchvision-{name}", "torchvision", target, images(size), num_classes=5, **settings)


_VIT = {"image_size": 16, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16}
_DENSE = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "bn_size": 2}
_SHUFFLED = {"stages_repeats": [1, 1, 1], "stages_out_channels": [8, 16, 32, 64, 64]}

_torchvision("resnet18", "resnet:resnet18", 32)
_torchvision("densenet", "densenet:DenseNet", 32, **_DENSE)
_torchvision("mobilenet_v2", "mobilenetv2:mobilenet_v2", 32, width_mult=0.1)
_torchvision("mobilenet_v3_small", "mobilenetv3:mobilenet_v3_small", 32, width_mult=0.25)
_torchvision("shufflenet_v2", "shufflenetv2:ShuffleNetV2", 32, **_SHUFFLED)
_torchvision("squeezenet1_1", "squeezenet:squeezenet1_1", 64)
_torchvision("mnasnet", "mnasnet:MNASNet", 32, alpha=0.1)
_torchvision("googlenet", "googlenet:googlenet", 64, init_weights=False)
_torchvision("vit", "vision_transformer:VisionTransformer", 16, **_VIT, mlp_dim=32)


def _efficient() -> nn.Module:
    configuration = load("torchvision.models.efficientnet:_efficientnet_conf")
    stages, last = configuration("efficientnet_b0", width_mult=0.25, depth_mult=0.3)
    network = load("torchvision.models.efficientnet:EfficientNet")
    model: nn.Module = network(stages, 0.2, num_classes=5, last_channel=last)
    return model


def _regular() -> nn.Module:
    stages = load("torchvision.models.regnet:BlockParams.from_init_params")
    chosen = stages(depth=4, w_0=8, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25)
    model: nn.Module = load("torchvision.models.regnet:RegNet")(chosen, num_classes=5)
    return model


def _reduced_atrous() -> nn.Module:
    backbone = load("torchvision.models.mobilenetv3:mobilenet_v3_large")
    head = load("torchvision.models.segmentation.lraspp:_lraspp_mobilenetv3")
    model: nn.Module = head(backbone(width_mult=0.2, dilated=True), 3)
    return model


_BY_HAND = {
    "efficientnet_b0": _efficient,
    "regnet_y": _regular,
    "lraspp": _reduced_atrous,
}
for name, build in _BY_HAND.items():
    MODELS[f"torchvision-{name}"] = Wild(package="torchvision", model=build, batch=images(32))


def _segmentation(name: str, target: str, **settings: Any) -> None:
    target = f"segmentation_models_pytorch:{target}"
    chosen = {"encoder_weights": None, "classes": 3, **settings}
    _add(f"smp-{name}", "segmentation-models-pytorch", target, images(32), "resnet18", **chosen)


_segmentation("unet", "Unet", decoder_channels=(32, 16, 16, 8, 8))
_segmentation("fpn", "FPN")
_SHALLOW = {"encoder_depth": 3, "decoder_channels": (32, 16, 8)}
_segmentation("unetplusplus", "UnetPlusPlus", **_SHALLOW)
_segmentation("linknet", "Linknet", encoder_depth=3)
_segmentation("pspnet", "PSPNet", encoder_depth=3, psp_out_channels=32)

_UNET = {"in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,)}
_add("monai-unet", "monai", "monai.networks.nets:UNet", images(16, 1), spatial_dims=2, **_UNET)

_PATCHES = {"image_size": 16, "patch_size": 4, "num_classes": 5, "dim": 16, "depth": 2}
_HEADS = {"heads": 2, "dim_head": 8, "mlp_dim": 24}
_add(
    "monai-segresnet",
    "monai",
    "monai.networks.nets:SegResNet",
    images(16, 1),
    spatial_dims=2,
    init_filters=8,
    blocks_down=(1, 1),
    blocks_up=(1,),
)
_add(
    "monai-attention-unet",
    "monai",
    "monai.networks.nets:AttentionUnet",
    images(16, 1),
    spatial_dims=2,
    **_UNET,
)
_add(
    "monai-densenet",
    "monai",
    "monai.networks.nets:DenseNet",
    images(32, 1),
    spatial_dims=2,
    in_channels=1,
    out_channels=3,
    init_features=8,
    growth_rate=4,
    block_config=(2, 2),
)
_add("vit-pytorch-vit", "vit-pytorch", "vit_pytorch:ViT", images(16), **_PATCHES, **_HEADS)
_add(
    "mlp-mixer",
    "mlp-mixer-pytorch",
    "mlp_mixer_pytorch:MLPMixer",
    images(16),
    **_PATCHES,
    channels=3,
)
_add("g-mlp", "g-mlp-pytorch", "g_mlp_pytorch:gMLPVision", images(16), **_PATCHES)
_add(
    "vit-pytorch-simple",
    "vit-pytorch",
    "vit_pytorch.simple_vit:SimpleViT",
    images(16),
    **_PATCHES,
    **_HEADS,
)
_add(
    "vit-pytorch-deep",
    "vit-pytorch",
    "vit_pytorch.deepvit:DeepViT",
    images(16),
    **_PATCHES,
    **_HEADS,
)
_add(
    "vit-pytorch-cait",
    "vit-pytorch",
    "vit_pytorch.cait:CaiT",
    images(16),
    **_PATCHES,
    **_HEADS,
    cls_depth=1,
)
_add(
    "vit-pytorch-parallel",
    "vit-pytorch",
    "vit_pytorch.parallel_vit:ViT",
    images(16),
    **_PATCHES,
    **_HEADS,
)
