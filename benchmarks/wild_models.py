"""Models of public packages in small configurations, as nobody prepared them, for `wild.py`.

Each entry builds a model and inputs of so many samples. Packages are imported where a model is built, so one that is
missing or broken costs its own models only.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = Callable[[int], Any]


@dataclass(frozen=True, kw_only=True)
class Wild:
    """A model of a public package.

    Attributes:
        package: distribution that it comes from.
        build: makes the model and a function that makes inputs of n samples.
    """

    package: str
    build: Callable[[], tuple[nn.Module, Batch]]


MODELS: dict[str, Wild] = {}


def wild(package: str, name: str) -> Callable[[Callable[[], tuple[nn.Module, Batch]]], None]:
    """Register a builder under a name."""

    def register(build: Callable[[], tuple[nn.Module, Batch]]) -> None:
        MODELS[name] = Wild(package=package, build=build)

    return register


def images(size: int, channels: int = 3) -> Batch:
    """Random images."""
    return lambda n: torch.randn(n, channels, size, size)


def tokens(vocabulary: int, length: int) -> Batch:
    """Random tokens."""
    return lambda n: torch.randint(vocabulary, (n, length))


def vectors(*shape: int) -> Batch:
    """Random vectors or sequences of vectors."""
    return lambda n: torch.randn(n, *shape)


class _First(nn.Module):
    """Keeps the first of several outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Tensor) -> Tensor:
        first: Tensor = self.model(*args)[0]
        return first


# -- plain torch: the short form, without any package


@wild("torch", "torch-mlp")
def _mlp() -> tuple[nn.Module, Batch]:
    parts = [nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(8, 3)), vectors(6)


@wild("torch", "torch-cnn")
def _cnn() -> tuple[nn.Module, Batch]:
    first = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    last = [nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(*first, *last), images(12)


@wild("torch", "torch-transformer")
def _transformer() -> tuple[nn.Module, Batch]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(4, 8), encoder, nn.Linear(8, 3)), vectors(5, 4)


# -- torchvision


@functools.cache
def _torchvision() -> Any:
    """Import torchvision beside a CPU build of torch, whose wheel's own operations can't be loaded there."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # what is cached is kept: the operations go when the library does
    return library, importlib.import_module("torchvision")


def _vision(name: str, size: int, **settings: Any) -> None:
    @wild("torchvision", f"torchvision-{name}")
    def _() -> tuple[nn.Module, Batch]:
        _torchvision()
        models = importlib.import_module("torchvision.models")
        return getattr(models, name)(weights=None, num_classes=5, **settings), images(size)


_vision("resnet18", 32)
_vision("densenet121", 32)
_vision("mobilenet_v2", 32)
_vision("mobilenet_v3_small", 32)
_vision("efficientnet_b0", 32)
_vision("shufflenet_v2_x0_5", 32)
_vision("squeezenet1_1", 64)
_vision("mnasnet0_5", 32)
_vision("regnet_y_400mf", 32)
_vision("googlenet", 64, init_weights=False)


@wild("torchvision", "torchvision-vit")
def _vit() -> tuple[nn.Module, Batch]:
    _torchvision()
    transformer = importlib.import_module("torchvision.models.vision_transformer")
    model = transformer.VisionTransformer(
        image_size=16,
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=5,
    )
    return model, images(16)


@wild("torchvision", "torchvision-deeplab")
def _deeplab() -> tuple[nn.Module, Batch]:
    _torchvision()
    segmentation = importlib.import_module("torchvision.models.segmentation")
    return segmentation.lraspp_mobilenet_v3_large(
        weights=None, num_classes=3, weights_backbone=None
    ), images(32)


# -- timm


def _timm(name: str, size: int, **settings: Any) -> None:
    @wild("timm", f"timm-{name}")
    def _() -> tuple[nn.Module, Batch]:
        _torchvision()
        timm = importlib.import_module("timm")
        return timm.create_model(name, num_classes=5, **settings), images(size)


_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
_timm("resnet26d", 32)
_timm("vit_tiny_patch16_224", 32, **_VIT)
_timm("deit3_small_patch16_224", 32, **_VIT)
_timm("convnext_atto", 32)
_timm("resnext26ts", 32)
_timm("repvgg_a0", 32)
_timm("ghostnet_050", 32)
_timm("poolformer_s12", 32)
_timm("nf_resnet26", 32)
_timm("levit_128s", 32, img_size=32)
_timm(
    "swin_tiny_patch4_window7_224",
    32,
    img_size=32,
    window_size=4,
    embed_dim=24,
    depths=(2, 2),
    num_heads=(2, 4),
)


@wild("timm", "timm-mixer")
def _timm_mixer() -> tuple[nn.Module, Batch]:
    _torchvision()
    mixer = importlib.import_module("timm.models.mlp_mixer")
    return mixer.MlpMixer(5, img_size=16, patch_size=4, num_blocks=2, embed_dim=16), images(16)


@wild("timm", "timm-convmixer")
def _timm_convmixer() -> tuple[nn.Module, Batch]:
    _torchvision()
    package = importlib.import_module("timm.models.convmixer")
    model = package.ConvMixer(16, 2, kernel_size=3, patch_size=4, num_classes=5)
    return model, images(16)


# -- transformers


def _hugging_face(name: str, config: str, model: str, batch: Batch, **settings: Any) -> None:
    @wild("transformers", f"transformers-{name}")
    def _() -> tuple[nn.Module, Batch]:
        _torchvision()  # which transformers imports where it is installed
        package = importlib.import_module("transformers")
        chosen = getattr(package, config)(**settings)
        chosen._attn_implementation = "eager"
        return getattr(package, model)(chosen), lambda n: {"input_ids": batch(n)}


_TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_TEXT, "intermediate_size": 24, "num_key_value_heads": 2, "use_cache": False}
_ids = tokens(40, 7)
_hugging_face(
    "gpt2",
    "GPT2Config",
    "GPT2LMHeadModel",
    _ids,
    vocab_size=40,
    n_embd=16,
    n_layer=2,
    n_head=4,
    n_positions=16,
    use_cache=False,
)
_hugging_face(
    "bert", "BertConfig", "BertForSequenceClassification", _ids, **_TEXT, intermediate_size=24
)
_hugging_face(
    "roberta",
    "RobertaConfig",
    "RobertaForSequenceClassification",
    _ids,
    **_TEXT,
    intermediate_size=24,
    pad_token_id=1,
)
_hugging_face(
    "distilbert",
    "DistilBertConfig",
    "DistilBertForSequenceClassification",
    _ids,
    vocab_size=40,
    dim=16,
    n_layers=2,
    n_heads=4,
    hidden_dim=24,
)
_hugging_face(
    "albert",
    "AlbertConfig",
    "AlbertForSequenceClassification",
    _ids,
    **_TEXT,
    embedding_size=8,
    intermediate_size=24,
)
_hugging_face(
    "electra",
    "ElectraConfig",
    "ElectraForSequenceClassification",
    _ids,
    **_TEXT,
    embedding_size=8,
    intermediate_size=24,
)
_hugging_face("llama", "LlamaConfig", "LlamaForCausalLM", _ids, **_LLAMA)
_hugging_face("mistral", "MistralConfig", "MistralForCausalLM", _ids, **_LLAMA)
_hugging_face("qwen2", "Qwen2Config", "Qwen2ForCausalLM", _ids, **_LLAMA)
_hugging_face("gemma", "GemmaConfig", "GemmaForCausalLM", _ids, **_LLAMA, head_dim=4)
_hugging_face(
    "opt",
    "OPTConfig",
    "OPTForCausalLM",
    _ids,
    **_TEXT,
    ffn_dim=24,
    word_embed_proj_dim=16,
    use_cache=False,
)
_hugging_face(
    "gpt-neox",
    "GPTNeoXConfig",
    "GPTNeoXForCausalLM",
    _ids,
    **_TEXT,
    intermediate_size=24,
    use_cache=False,
)
_hugging_face(
    "bloom",
    "BloomConfig",
    "BloomForCausalLM",
    _ids,
    vocab_size=40,
    hidden_size=16,
    n_layer=2,
    n_head=4,
    use_cache=False,
)
_hugging_face(
    "mamba",
    "MambaConfig",
    "MambaForCausalLM",
    _ids,
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    state_size=4,
    use_cache=False,
)
_hugging_face(
    "t5-encoder",
    "T5Config",
    "T5EncoderModel",
    _ids,
    vocab_size=40,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_layers=2,
    num_heads=4,
)
_hugging_face(
    "funnel",
    "FunnelConfig",
    "FunnelForSequenceClassification",
    tokens(40, 8),
    vocab_size=40,
    block_sizes=[1, 1],
    d_model=16,
    n_head=4,
    d_head=4,
    d_inner=24,
)


@wild("transformers", "transformers-vit")
def _hf_vit() -> tuple[nn.Module, Batch]:
    _torchvision()
    package = importlib.import_module("transformers")
    config = package.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        image_size=16,
        patch_size=4,
    )
    return package.ViTForImageClassification(config), lambda n: {
        "pixel_values": torch.randn(n, 3, 16, 16)
    }


@wild("transformers", "transformers-wav2vec2")
def _wav2vec2() -> tuple[nn.Module, Batch]:
    _torchvision()
    package = importlib.import_module("transformers")
    config = package.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_stride=(4, 2),
        conv_kernel=(8, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return package.Wav2Vec2ForSequenceClassification(config), lambda n: {
        "input_values": torch.randn(n, 200)
    }


# -- lucidrains


@wild("x-transformers", "x-transformers")
def _x_transformers() -> tuple[nn.Module, Batch]:
    x = importlib.import_module("x_transformers")
    layers = x.Decoder(dim=16, depth=2, heads=2, attn_dim_head=8)
    return x.TransformerWrapper(num_tokens=40, max_seq_len=16, attn_layers=layers), tokens(40, 7)


@wild("vit-pytorch", "vit-pytorch-vit")
def _lucid_vit() -> tuple[nn.Module, Batch]:
    _torchvision()
    vit = importlib.import_module("vit_pytorch")
    model = vit.ViT(
        image_size=16, patch_size=4, num_classes=5, dim=16, depth=2, heads=2, dim_head=8, mlp_dim=24
    )
    return model, images(16)


@wild("mlp-mixer-pytorch", "mlp-mixer")
def _mixer() -> tuple[nn.Module, Batch]:
    mixer = importlib.import_module("mlp_mixer_pytorch")
    return mixer.MLPMixer(
        image_size=16, channels=3, patch_size=4, dim=16, depth=2, num_classes=5
    ), images(16)


@wild("g-mlp-pytorch", "g-mlp")
def _gmlp() -> tuple[nn.Module, Batch]:
    gmlp = importlib.import_module("g_mlp_pytorch")
    return gmlp.gMLPVision(image_size=16, patch_size=4, num_classes=5, dim=16, depth=2), images(16)


@wild("perceiver-pytorch", "perceiver-io")
def _perceiver() -> tuple[nn.Module, Batch]:
    perceiver = importlib.import_module("perceiver_pytorch")
    model = perceiver.PerceiverIO(
        dim=8,
        queries_dim=8,
        depth=1,
        num_latents=4,
        latent_dim=16,
        cross_heads=1,
        latent_heads=2,
        cross_dim_head=8,
        latent_dim_head=8,
    )
    return model, vectors(6, 8)


@wild("tab-transformer-pytorch", "ft-transformer")
def _ft() -> tuple[nn.Module, Batch]:
    tab = importlib.import_module("tab_transformer_pytorch")
    model = tab.FTTransformer(
        categories=(3, 4), num_continuous=3, dim=16, dim_out=2, depth=2, heads=2, dim_head=8
    )
    return model, lambda n: (torch.randint(3, (n, 2)), torch.randn(n, 3))


@wild("conformer", "conformer")
def _conformer() -> tuple[nn.Module, Batch]:
    package = importlib.import_module("conformer")
    block = package.ConformerBlock(dim=16, dim_head=8, heads=2, ff_mult=2, conv_kernel_size=3)
    return nn.Sequential(nn.Linear(4, 16), block, nn.Linear(16, 3)), vectors(8, 4)


@wild("denoising-diffusion-pytorch", "diffusion-unet")
def _unet() -> tuple[nn.Module, Batch]:
    _torchvision()
    package = importlib.import_module("denoising_diffusion_pytorch")
    model = package.Unet(
        dim=8, dim_mults=(1, 2), channels=3, attn_dim_head=8, attn_heads=2, flash_attn=False
    )
    return model, lambda n: (torch.randn(n, 3, 8, 8), torch.rand(n))


# -- others


@wild("diffusers", "diffusers-unet2d")
def _unet2d() -> tuple[nn.Module, Batch]:
    _torchvision()
    diffusers = importlib.import_module("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    return model, lambda n: (torch.randn(n, 3, 8, 8), torch.randint(100, (n,)))


@wild("segmentation-models-pytorch", "smp-unet")
def _smp_unet() -> tuple[nn.Module, Batch]:
    _torchvision()
    smp = importlib.import_module("segmentation_models_pytorch")
    return smp.Unet(
        "resnet18", encoder_weights=None, classes=3, decoder_channels=(32, 16, 16, 8, 8)
    ), images(32)


@wild("segmentation-models-pytorch", "smp-fpn")
def _smp_fpn() -> tuple[nn.Module, Batch]:
    _torchvision()
    smp = importlib.import_module("segmentation_models_pytorch")
    return smp.FPN("resnet18", encoder_weights=None, classes=3), images(32)


@wild("monai", "monai-unet")
def _monai() -> tuple[nn.Module, Batch]:
    _torchvision()
    nets = importlib.import_module("monai.networks.nets")
    return nets.UNet(
        spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,)
    ), images(16, 1)


@wild("neuraloperator", "neuralop-fno")
def _fno() -> tuple[nn.Module, Batch]:
    models = importlib.import_module("neuralop.models")
    return models.FNO(
        n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=8, n_layers=2
    ), images(8, 1)


@wild("pykan", "pykan-kan")
def _kan() -> tuple[nn.Module, Batch]:
    kan = importlib.import_module("kan")
    return kan.MultKAN(
        width=[2, 3, 1], grid=3, k=3, auto_save=False, symbolic_enabled=False, device="cpu"
    ), vectors(2)


@wild("nbeats-pytorch", "nbeats")
def _nbeats() -> tuple[nn.Module, Batch]:
    package = importlib.import_module("nbeats_pytorch.model")
    net = package.NBeatsNet(
        device=torch.device("cpu"),
        forecast_length=2,
        backcast_length=6,
        hidden_layer_units=8,
        thetas_dim=(4, 4),
        nb_blocks_per_stack=2,
    )
    return net, vectors(6)


@wild("rtdl-revisiting-models", "rtdl-resnet")
def _rtdl() -> tuple[nn.Module, Batch]:
    rtdl = importlib.import_module("rtdl_revisiting_models")
    model = rtdl.ResNet(
        d_in=6,
        d_out=2,
        n_blocks=2,
        d_block=8,
        d_hidden=12,
        d_hidden_multiplier=None,
        dropout1=0.1,
        dropout2=0.0,
    )
    return model, vectors(6)


@wild("e3nn", "e3nn-mlp")
def _e3nn() -> tuple[nn.Module, Batch]:
    package = importlib.import_module("e3nn.nn")
    return package.FullyConnectedNet([4, 8, 8, 2], torch.nn.functional.silu), vectors(4)


class _Graph(nn.Module):
    """Two layers of message passing over nodes, and a head."""

    def __init__(self, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second, self.head = layer(4, 8), layer(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = torch.relu(self.first(x, edge_index))
        out: Tensor = self.head(torch.relu(self.second(x, edge_index)))
        return out


def _geometric(name: str, **settings: Any) -> None:
    @wild("torch-geometric", f"torch-geometric-{name}")
    def _() -> tuple[nn.Module, Batch]:
        layers = importlib.import_module("torch_geometric.nn")
        model = _Graph(lambda i, o: getattr(layers, name)(i, o, **settings))
        edges = torch.stack([torch.arange(6), torch.arange(1, 7) % 6])
        return model, lambda n: (
            torch.randn(6 * n, 4),
            torch.cat([edges + 6 * i for i in range(n)], 1),
        )


_geometric("GCNConv")
_geometric("SAGEConv")
_geometric("GraphConv")
