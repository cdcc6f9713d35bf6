"""Convolutional models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn.nn import DenseConvNet
from zoo.entry import Entry, image


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 5, padding=2), nn.Conv2d(4, 6, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(6 * 4, 11), nn.Linear(11, 7), nn.Linear(7, 5)

    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2, ceil_mode=True)
        x = torch.tanh(self.fc1(torch.flatten(x, 1)))
        return self.fc3(torch.tanh(self.fc2(x)))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, channels = [], 3
        for width in (5, "M", 6, 7, "M"):
            if width == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(7 * 16, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 5)
        )

    def forward(self, x):
        return self.classifier(self.features(x).view(x.size(0), -1))


class Basic(nn.Module):
    def __init__(self, inputs, width, inner, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.down = None
        if stride != 1 or inputs != width:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return F.relu(y)


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, inner, stride=1, groups=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2, self.conv3, self.bn3 = (
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, width, 1),
            nn.BatchNorm2d(width),
        )
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Conv2d(inputs, width, 1, stride) if stride != 1 or inputs != width else nn.Identity()
        )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, blocks, stem, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem)
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(width, 5)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActivation(nn.Module):
    def __init__(self, inputs, width, inner, stride):
        super().__init__()
        self.bn1, self.conv1 = (
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, inner, 3, stride, 1, bias=False),
        )
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, width, 3, 1, 1, bias=False)
        self.convdim = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, x):
        y = F.relu(self.bn1(x))
        short = x if self.convdim is None else self.convdim(y)
        return short + self.conv2(F.dropout(F.relu(self.bn2(self.conv1(y))), 0.0, self.training))


class WideResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.layer = nn.Sequential(PreActivation(4, 6, 5, 2), PreActivation(6, 6, 7, 1))
        self.bn, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(F.relu(self.bn(self.layer(self.conv(x)))).mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.bn, self.conv = (
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, growth, 3, padding=1, bias=False),
        )

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.block = nn.Sequential(DenseLayer(5, 3), DenseLayer(8, 4))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 1), nn.AvgPool2d(2)
        )
        self.bn, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(F.relu(self.bn(self.transition(self.block(self.stem(x))))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.pool, self.reduce, self.expand = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, inner, 1),
            nn.Conv2d(inner, width, 1),
        )

    def forward(self, x):
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(self.pool(x)))))


class Inverted(nn.Module):
    def __init__(self, inputs, width, inner, stride):
        super().__init__()
        self.residual = stride == 1 and inputs == width
        self.conv = nn.Sequential(
            *(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.Hardswish()),
            *(
                nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
                nn.BatchNorm2d(inner),
                nn.Hardswish(),
            ),
            SqueezeExcite(inner, 3),
            *(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU6())
        self.blocks = nn.Sequential(Inverted(4, 4, 8, 1), Inverted(4, 6, 10, 2))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).reshape(x.shape[0], -1))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of images."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.dwconv, self.norm = (
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.LayerNorm(width, eps=1e-6),
        )
        self.pwconv1, self.act, self.pwconv2 = (
            nn.Linear(width, inner),
            nn.GELU(),
            nn.Linear(inner, width),
        )
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 4, 4), ChannelNorm(6))
        self.stage1, self.down = (
            ConvNeXtBlock(6, 10),
            nn.Sequential(ChannelNorm(6), nn.Conv2d(6, 8, 2, 2)),
        )
        self.stage2, self.norm, self.head = ConvNeXtBlock(8, 14), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(
            self.norm(self.stage2(self.down(self.stage1(self.stem(x)))).mean([-2, -1]))
        )


class Double(nn.Sequential):
    def __init__(self, inputs, inner, width):
        first = (nn.Conv2d(inputs, inner, 3, padding=1), nn.BatchNorm2d(inner), nn.ReLU())
        super().__init__(
            *first, nn.Conv2d(inner, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc1, self.enc2, self.mid = Double(1, 3, 4), Double(4, 5, 6), Double(6, 7, 8)
        self.up2, self.dec2 = nn.ConvTranspose2d(8, 6, 2, 2), Double(12, 9, 6)
        self.up1, self.dec1, self.out = (
            nn.ConvTranspose2d(6, 4, 2, 2),
            Double(8, 10, 4),
            nn.Conv2d(4, 2, 1),
        )

    def forward(self, x):
        a = self.enc1(x)
        b = self.enc2(F.max_pool2d(a, 2))
        y = self.up2(self.mid(F.max_pool2d(b, 2)))
        y = self.up1(self.dec2(torch.cat([b, y], dim=1)))
        return self.out(self.dec1(torch.cat([a, y], dim=1))).mean((2, 3))


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 3, 1)
        self.three = nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(4, 2, 1))
        self.fc = nn.Linear(11, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        branches = [branch(x) for branch in (self.one, self.three, self.pool)]
        return self.fc(F.relu(torch.cat(branches, 1)).mean(dim=(2, 3)))


class ShuffleUnit(nn.Module):
    """ShuffleNet v1: grouped 1 x 1 convolutions and a channel shuffle."""

    def __init__(self, width, inner, groups):
        super().__init__()
        self.groups = groups
        self.conv1, self.bn1 = (
            nn.Conv2d(width, inner, 1, groups=groups, bias=False),
            nn.BatchNorm2d(inner),
        )
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.bn2, self.conv3 = (
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, width, 1, groups=groups, bias=False),
        )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        b, c, h, w = y.shape
        y = y.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return F.relu(x + self.conv3(self.bn2(self.conv2(y))))


class ShuffleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.unit, self.fc = (
            nn.Conv2d(3, 8, 3, 2, 1),
            ShuffleUnit(8, 12, 2),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        return self.fc(self.unit(self.stem(x)).mean((2, 3)))


class GroupNormNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(3, 6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, 2, 1), nn.GroupNorm(2, 8)
        self.conv3, self.norm3, self.fc = (
            nn.Conv2d(8, 5, 3),
            nn.InstanceNorm2d(5, affine=True),
            nn.Linear(5 * 4, 5),
        )

    def forward(self, x):
        x = F.silu(self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x))))))
        return self.fc(F.adaptive_max_pool2d(F.silu(self.norm3(self.conv3(x))), 2).flatten(1))


class SuperResolution(nn.Module):
    """Sub-pixel convolution."""

    def __init__(self):
        super().__init__()
        self.head, self.act, self.up = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.PReLU(4),
            nn.Conv2d(4, 12, 3, padding=1),
        )
        self.shuffle, self.tail = nn.PixelShuffle(2), nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x):
        y = self.tail(torch.relu(self.shuffle(self.up(self.act(self.head(x))))))
        return y + F.interpolate(x, scale_factor=2, mode="bilinear")


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU()
        )
        self.code, self.back = nn.Linear(6 * 16, 3), nn.Linear(3, 6 * 16)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(6, 5, 2, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(5, 1, 3, 2, 1, output_padding=1),
        )

    def forward(self, x):
        y = self.encoder(x)
        y = self.back(torch.tanh(self.code(y.flatten(1)))).unflatten(1, (-1, 4, 4))
        return self.decoder(torch.relu(y))


def sequence_net():
    return nn.Sequential(
        *(
            nn.Conv1d(3, 4, 3, padding=1, dilation=1),
            nn.BatchNorm1d(4),
            nn.LeakyReLU(),
            nn.MaxPool1d(2),
        ),
        *(
            nn.Conv1d(4, 6, 3, padding=2, dilation=2),
            nn.GELU(),
            nn.AdaptiveAvgPool1d(2),
            nn.Flatten(),
            nn.Linear(12, 5),
        ),
    )


def volume_net():
    return nn.Sequential(
        *(nn.Conv3d(1, 3, 3, padding=1), nn.BatchNorm3d(3), nn.ReLU(), nn.MaxPool3d(2)),
        *(nn.Conv3d(3, 4, 3), nn.ELU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5)),
    )


def _basic():
    return ResNet([Basic(4, 4, 5), Basic(4, 6, 7, 2), Basic(6, 6, 8)], 4, 6)


def _bottleneck():
    return ResNet([Bottleneck(4, 8, 3), Bottleneck(8, 12, 5, 2)], 4, 12)


def _resnext():
    return ResNet([Bottleneck(4, 8, 6, groups=3)], 4, 8)


OUT = {"fc": "outputs"}
ENTRIES = {
    "lenet": Entry(LeNet, image(1, 14), {"conv1": 4, "conv2": 6, "fc1": 11, "fc2": 7}, never={"fc3": "outputs"}),
    "vgg": Entry(
        VGG, image(3, 16), {"features.0": 5, "features.4": 6, "features.7": 7, "classifier.0": 9},
        never={"classifier.3": "outputs"},
    ),
    "resnet": Entry(
        _basic, image(3, 16),
        {"conv1": 4, "blocks.0.conv1": 5, "blocks.1.conv1": 7, "blocks.1.conv2": 6, "blocks.2.conv1": 8}, never=OUT,
        blocks=["blocks.0", "blocks.2"],
    ),
    "resnet bottleneck": Entry(
        _bottleneck, image(3, 16),
        {
            "conv1": 4, "blocks.0.conv1": 3, "blocks.0.conv2": 3, "blocks.0.conv3": 8, "blocks.1.conv1": 5,
            "blocks.1.conv2": 5, "blocks.1.conv3": 12,
        },
        never=OUT,
    ),
    "resnext": Entry(
        _resnext, image(3, 16), {"conv1": 4, "blocks.0.conv1": 2, "blocks.0.conv2": 2, "blocks.0.conv3": 8}, never=OUT
    ),
    "wide resnet": Entry(
        WideResNet, image(3, 16), {"conv": 4, "layer.0.conv1": 5, "layer.0.convdim": 6, "layer.1.conv1": 7}, never=OUT,
        blocks=["layer.1"],
    ),
    "densenet": Entry(
        DenseNet, image(3, 8), {"stem": 5, "block.0.conv": 3, "block.1.conv": 4, "transition.2": 6}, never=OUT
    ),
    "dense blocks": Entry(
        lambda: DenseConvNet(3, ((4, 5, 6), (7, 3)), 5), image(3, 8),
        {"blocks.0.0": 4, "blocks.0.1": 5, "blocks.0.2": 6, "blocks.1.0": 7, "blocks.1.1": 3},
        never={"head": "outputs"},
    ),
    "mobilenet": Entry(
        MobileNet, image(3, 16),
        {
            "stem.0": 4, "blocks.0.conv.0": 8, "blocks.0.conv.6.reduce": 3, "blocks.1.conv.0": 10,
            "blocks.1.conv.6.reduce": 3, "blocks.1.conv.7": 6,
        },
        never=OUT, blocks=["blocks.0"],
    ),
    "convnext": Entry(
        ConvNeXt, image(3, 16), {"stage1.pwconv1": 10, "stage2.pwconv1": 14},
        {"stem.0": "normali[sz]es", "down.1": "normali[sz]es"}, never={"head": "outputs"},
        blocks=["stage1", "stage2"],
    ),
    "unet": Entry(
        UNet, image(1, 8),
        {
            "enc1.0": 3, "enc1.3": 4, "enc2.0": 5, "enc2.3": 6, "mid.0": 7, "mid.3": 8, "up2": 6, "dec2.0": 9,
            "dec2.3": 6, "up1": 4, "dec1.0": 10, "dec1.3": 4,
        },
        never={"out": "outputs"},
    ),
    "inception": Entry(
        Inception, image(3, 8), {"stem": 4, "one": 3, "three.0": 5, "three.2": 6, "pool.1": 2}, never=OUT
    ),
    # A ReLU after the sum is given negative numbers, which don't come back: no block.
    "shufflenet": Entry(ShuffleNet, image(3, 8), {"stem": 4, "unit.conv1": 3}, never=OUT),
    "groupnorm": Entry(GroupNormNet, image(3, 8), {"conv1": 3, "conv2": 2, "conv3": 5}, never=OUT),
    "superresolution": Entry(SuperResolution, image(1, 6), {"head": 4, "up": 3}, never={"tail": "outputs"}),
    "autoencoder": Entry(
        Autoencoder, image(1, 16), {"encoder.0": 4, "encoder.2": 6, "code": 3, "back": 6, "decoder.0": 5},
        never={"decoder.2": "outputs"},
    ),
    "conv1d": Entry(sequence_net, lambda n: torch.randn(n, 3, 12), {"0": 4, "4": 6}, never={"8": "outputs"}),
    "conv3d": Entry(volume_net, lambda n: torch.randn(n, 1, 6, 6, 6), {"0": 3, "4": 4}, never={"8": "outputs"}),
}  # fmt: skip
_ = Tensor
