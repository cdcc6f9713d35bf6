"""Models of plain torch: the short form of the bench, without any package."""

from __future__ import annotations

from torch import nn

from wild_models.registry import Models, Wild, images, vectors


def _mlp() -> nn.Module:
    parts = [nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(8, 3))


def _cnn() -> nn.Module:
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    last = [nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(*first, *last)


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(4, 8), encoder, nn.Linear(8, 3))


MODELS: Models = {
    "torch-mlp": Wild(package="torch", model=_mlp, batch=vectors(6)),
    "torch-cnn": Wild(package="torch", model=_cnn, batch=images(12)),
    "torch-transformer": Wild(package="torch", model=_transformer, batch=vectors(5, 4)),
}
