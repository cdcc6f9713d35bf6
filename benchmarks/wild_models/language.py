"""Models of transformers, and language models of other packages."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wild_models.registry import Batch, Build, Models, Wild, load, made, named, tokens, vectors

MODELS: Models = {}


def _hugging_face(
    name: str, family: str, task: str, batch: Batch | None = None, **settings: Any
) -> None:
    """Add the model that a configuration describes."""
    MODELS[f"transformers-{name}"] = Wild(
        package="transformers",
        model=_configured(f"{family}Config", f"{family}{task}", settings),
        batch=batch or named(input_ids=tokens(40, 8)),
        # products of experts exist in float32 only
        dtype=torch.float32 if "num_local_experts" in settings else torch.float64,
    )


def _configured(config: str, model: str, settings: dict[str, Any]) -> Build:
    def build() -> nn.Module:
        chosen = load(f"transformers:{config}")(**settings)
        chosen._attn_implementation = "eager"
        built: nn.Module = load(f"transformers:{model}")(chosen)
        return built

    return build


_CLASSIFIES, _WRITES = "ForSequenceClassification", "ForCausalLM"
_TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT = {**_TEXT, "intermediate_size": 24}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "use_cache": False}
_GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16}
_LAYERS = {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4, "use_cache": False}
_STATES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
_T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
_DISTIL = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}
_FUNNEL = {"d_model": 16, "n_head": 4, "d_head": 4, "d_inner": 24, "block_sizes": [1, 1]}
_XLNET = {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24}
_HEADS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
_HEADS["intermediate_size"] = 24
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_pixels = named(pixel_values=vectors(3, 32, 32))
_WAVES = {"conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 3)}
_POSITIONS = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}

_hugging_face("gpt2", "GPT2", "LMHeadModel", **_GPT2, use_cache=False)
_hugging_face("bert", "Bert", _CLASSIFIES, **_BERT)
_hugging_face("roberta", "Roberta", _CLASSIFIES, **_BERT, pad_token_id=1)
_hugging_face("distilbert", "DistilBert", _CLASSIFIES, **_DISTIL)
_hugging_face("albert", "Albert", _CLASSIFIES, **_BERT, embedding_size=8)
_hugging_face("electra", "Electra", _CLASSIFIES, **_BERT, embedding_size=8)
_hugging_face("llama", "Llama", _WRITES, **_LLAMA)
_hugging_face("mistral", "Mistral", _WRITES, **_LLAMA)
_hugging_face("qwen2", "Qwen2", _WRITES, **_LLAMA)
_hugging_face("gemma", "Gemma", _WRITES, **_LLAMA, head_dim=4)
_hugging_face("opt", "OPT", _WRITES, **_TEXT, ffn_dim=24, word_embed_proj_dim=16, use_cache=False)
_hugging_face("gpt-neox", "GPTNeoX", _WRITES, **_BERT, use_cache=False)
_hugging_face("bloom", "Bloom", _WRITES, **_LAYERS)
_hugging_face("mamba", "Mamba", _WRITES, **_STATES, use_cache=False)
_hugging_face("t5-encoder", "T5", "EncoderModel", **_T5)
_hugging_face("funnel", "Funnel", _CLASSIFIES, vocab_size=40, **_FUNNEL)
_hugging_face("gptj", "GPTJ", _WRITES, **_GPT2, rotary_dim=4, use_cache=False)
_hugging_face("falcon", "Falcon", _WRITES, **_TEXT, use_cache=False)
_hugging_face("phi", "Phi", _WRITES, **_LLAMA)
_hugging_face("stablelm", "StableLm", _WRITES, **_LLAMA, partial_rotary_factor=0.5)
_hugging_face("olmo", "Olmo", _WRITES, **_LLAMA)
_hugging_face("cohere", "Cohere", _WRITES, **_LLAMA)
_hugging_face("starcoder2", "Starcoder2", _WRITES, **_LLAMA)
_hugging_face("granite", "Granite", _WRITES, **_LLAMA)
_hugging_face("qwen3", "Qwen3", _WRITES, **_LLAMA, head_dim=4)
_hugging_face("gemma2", "Gemma2", _WRITES, **_LLAMA, head_dim=4)
_hugging_face("mixtral", "Mixtral", _WRITES, **_LLAMA, num_local_experts=2)
_hugging_face("camembert", "Camembert", _CLASSIFIES, **_BERT, pad_token_id=1)
_hugging_face("ernie", "Ernie", _CLASSIFIES, **_BERT)
_hugging_face("megatron-bert", "MegatronBert", _CLASSIFIES, **_BERT)
_hugging_face("roformer", "RoFormer", _CLASSIFIES, **_BERT)
_hugging_face("convbert", "ConvBert", _CLASSIFIES, **_BERT, embedding_size=16, head_ratio=2)
_hugging_face("squeezebert", "SqueezeBert", _CLASSIFIES, **_BERT, embedding_size=16)
_hugging_face("deberta-v2", "DebertaV2", _CLASSIFIES, **_BERT)
_hugging_face("mpnet", "MPNet", _CLASSIFIES, **_BERT)
_hugging_face("fnet", "FNet", _CLASSIFIES, **_BERT)
_hugging_face("xlnet", "XLNet", _CLASSIFIES, **_XLNET)
for _name, _family in {"vit": "ViT", "deit": "DeiT", "beit": "Beit", "dinov2": "Dinov2"}.items():
    _hugging_face(
        _name,
        _family,
        "ForImageClassification",
        named(pixel_values=vectors(3, 16, 16)),
        **_HEADS,
        image_size=16,
        patch_size=4,
    )
_hugging_face("convnext", "ConvNext", "ForImageClassification", _pixels, **_STAGES)
_hugging_face("convnextv2", "ConvNextV2", "ForImageClassification", _pixels, **_STAGES)
_hugging_face("poolformer", "PoolFormer", "ForImageClassification", _pixels, **_STAGES)
_hugging_face("resnet", "ResNet", "ForImageClassification", _pixels, **_STAGES, embedding_size=8)
_hugging_face("regnet", "RegNet", "ForImageClassification", _pixels, **_STAGES, groups_width=8)
_hugging_face("segformer", "Segformer", "ForImageClassification", _pixels, **_STAGES)
_hugging_face(
    "wav2vec2",
    "Wav2Vec2",
    _CLASSIFIES,
    named(input_values=vectors(200)),
    **_HEADS,
    **_WAVES,
    **_POSITIONS,
)


def _add(name: str, package: str, model: Build, batch: Batch) -> None:
    MODELS[name] = Wild(package=package, model=model, batch=batch)


def _x_transformer() -> nn.Module:
    layers = load("x_transformers:Decoder")(dim=16, depth=2, heads=2, attn_dim_head=8)
    wrapper = load("x_transformers:TransformerWrapper")
    model: nn.Module = wrapper(num_tokens=40, max_seq_len=16, attn_layers=layers)
    return model


def _conformer() -> nn.Module:
    settings = {"dim": 16, "dim_head": 8, "heads": 2, "ff_mult": 2, "conv_kernel_size": 3}
    block = load("conformer:ConformerBlock")(**settings)
    return nn.Sequential(nn.Linear(4, 16), block, nn.Linear(16, 3))


def _categories_and_numbers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(3, (n, 2)), torch.randn(n, 3)


_PERCEIVER = {"dim": 8, "queries_dim": 8, "depth": 1, "num_latents": 4, "latent_dim": 16}
_PERCEIVER |= {"cross_heads": 1, "latent_heads": 2, "cross_dim_head": 8, "latent_dim_head": 8}
_TABLE = {"categories": (3, 4), "num_continuous": 3, "dim": 16, "dim_out": 2, "depth": 2}
_TABLE |= {"heads": 2, "dim_head": 8}

_add("x-transformers", "x-transformers", _x_transformer, tokens(40, 7))
_add(
    "perceiver-io",
    "perceiver-pytorch",
    made("perceiver_pytorch:PerceiverIO", **_PERCEIVER),
    vectors(6, 8),
)
_add(
    "ft-transformer",
    "tab-transformer-pytorch",
    made("tab_transformer_pytorch:FTTransformer", **_TABLE),
    _categories_and_numbers,
)
_add("conformer", "conformer", _conformer, vectors(8, 4))
