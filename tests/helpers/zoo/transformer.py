"""Models with attention, and of tokens."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from zoo.entry import Entry, image, vectors, words


class Attention(nn.Module):
    """One projection for queries, keys and values, as in timm."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(b, n, 3, self.num_heads, self.head_dim)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj(
            (weights @ v).transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim)
        )


class Block(nn.Module):
    def __init__(self, width, heads, inner, attention=Attention):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width=12, heads=3):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls, self.pos = (
            nn.Parameter(torch.randn(1, 1, width)),
            nn.Parameter(torch.randn(1, 17, width)),
        )
        self.blocks = nn.ModuleList([Block(width, heads, 20), Block(width, heads, 22)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class CausalAttention(nn.Module):
    def __init__(self, width, heads, length=16):
        super().__init__()
        self.n_head, self.n_embd = heads, width
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer(
            "bias", torch.tril(torch.ones(length, length)).view(1, 1, length, length)
        )

    def forward(self, x):
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        q = q.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        v = v.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        weights = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        weights = weights.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(weights, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class GPT(nn.Module):
    """In the style of nanoGPT, the head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe, self.block_size = nn.Embedding(17, 12), nn.Embedding(16, 12), 16
        self.h = nn.ModuleList(
            [Block(12, 3, 20, CausalAttention), Block(12, 3, 22, CausalAttention)]
        )
        self.ln_f, self.lm_head = nn.LayerNorm(12), nn.Linear(12, 17, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, tokens):
        _, t = tokens.size()
        assert t <= self.block_size, f"cannot forward {t} tokens"
        x = self.wte(tokens) + self.wpe(torch.arange(0, t, device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))[:, -1]


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class GroupedQuery(nn.Module):
    def __init__(self, width, heads, shared, size):
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, size
        self.wq, self.wk = (
            nn.Linear(width, heads * size, bias=False),
            nn.Linear(width, shared * size, bias=False),
        )
        self.wv, self.wo = (
            nn.Linear(width, shared * size, bias=False),
            nn.Linear(heads * size, width, bias=False),
        )

    def forward(self, x, rotation):
        b, t, _ = x.shape
        q = rotated(self.wq(x).view(b, t, self.heads, self.size), rotation)
        k = rotated(self.wk(x).view(b, t, self.shared, self.size), rotation)
        v = self.wv(x).view(b, t, self.shared, self.size)
        repeats = self.heads // self.shared
        k, v = (y.repeat_interleave(repeats, dim=2).transpose(1, 2) for y in (k, v))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))


def rotated(x, rotation):
    cos, sin = (table[: x.shape[1]].unsqueeze(1) for table in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class LlamaBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(12), GroupedQuery(12, 4, 2, 6)
        self.ffn_norm = RMSNorm(12)
        self.w1, self.w2, self.w3 = (
            nn.Linear(*sizes, bias=False) for sizes in ((12, 18), (18, 12), (12, 18))
        )

    def forward(self, x, rotation):
        x = x + self.attention(self.attention_norm(x), rotation)
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layers = nn.Embedding(17, 12), nn.ModuleList([LlamaBlock(), LlamaBlock()])
        self.norm, self.output = RMSNorm(12), nn.Linear(12, 17, bias=False)
        angles = torch.outer(torch.arange(16.0), 10000.0 ** (-torch.arange(0, 6, 2) / 6))
        angles = torch.cat((angles, angles), -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, (self.cos, self.sin))
        return self.output(self.norm(x))[:, -1]


class Encoder(nn.Module):
    def __init__(self, norm_first):
        super().__init__()
        self.inp, self.out = nn.Linear(6, 12), nn.Linear(12, 5)
        layer = nn.TransformerEncoderLayer(
            12, 3, 20, batch_first=True, norm_first=norm_first, dropout=0.0
        )
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.out(self.enc(self.inp(x)).mean(1))


class Translator(nn.Module):
    """nn.Transformer's decoder layers, time first."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Linear(6, 12), nn.Embedding(9, 12)
        self.dec = nn.TransformerDecoderLayer(12, 3, 20, dropout=0.0, norm_first=True)
        self.norm, self.out = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x, tokens):
        memory, y = self.source(x).transpose(0, 1), self.target(tokens).transpose(0, 1)
        return self.out(self.norm(self.dec(y, memory))[-1])


class Pooling(nn.Module):
    """Attention alone: a learnt query over tokens."""

    def __init__(self):
        super().__init__()
        self.inp, self.query = nn.Linear(6, 12), nn.Parameter(torch.randn(1, 1, 12))
        self.attn, self.out = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 5)

    def forward(self, x):
        x = self.inp(x)
        y, _ = self.attn(self.query.expand(len(x), -1, -1), x, x)
        return self.out(y[:, 0])


class MixerBlock(nn.Module):
    def __init__(self, tokens, width, across, inner):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, across), nn.GELU(), nn.Linear(across, tokens))
        self.channels = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.Sequential(MixerBlock(16, 8, 11, 13))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


_FUSED = {
    f"enc.layers.{n}.linear{k}": "no layer can be inserted .*fast path"
    for n in (0, 1)
    for k in (1, 2)
}
ENTRIES = {
    "vit": Entry(
        ViT, image(3, 16),
        {"patch": 12, "blocks.0.attn.qkv": 3, "blocks.0.mlp.0": 20, "blocks.1.attn.qkv": 3, "blocks.1.mlp.0": 22},
        never={"head": "outputs"}, blocks=["blocks.0", "blocks.1"],
    ),
    "gpt": Entry(
        GPT, words(17, 8), {"wte": 3, "h.0.mlp.0": 20, "h.1.mlp.0": 22}, never={"wte.weight:0": "outputs"},
        blocks=["h.0", "h.1"],
    ),
    "llama": Entry(
        Llama, words(17, 8),
        {
            "embed": 12, "layers.0.attention.wq": 2, "layers.0.w1": 18, "layers.1.attention.wq": 2, "layers.1.w1": 18,
        },
        never={"output": "outputs"}, blocks=["layers.0", "layers.1"],
    ),
    "encoder": Entry(
        lambda: Encoder(True), vectors(4, 6), {"inp": 3, "enc.layers.0.linear1": 20, "enc.layers.1.linear1": 20},
        never={"out": "outputs", **_FUSED}, blocks=["enc.layers.0", "enc.layers.1"],
    ),
    # The sum is normalized: with an addition of zero, x isn't what comes out. No blocks, nor in BERT.
    "encoder, norms after": Entry(
        lambda: Encoder(False), vectors(4, 6), {"enc.layers.0.linear1": 20, "enc.layers.1.linear1": 20},
        {"inp": "normali[sz]es", **{f"enc.layers.{n}.self_attn.in_proj_weight": "follows" for n in (0, 1)}},
        never={"out": "outputs", **_FUSED},
    ),
    "decoder": Entry(
        Translator, lambda n: (torch.randn(n, 5, 6), torch.randint(0, 9, (n, 4))), {"source": 3, "dec.linear1": 20},
        never={"out": "outputs", "dec": "nothing like it can be put after it"},
    ),
    "pooling": Entry(Pooling, vectors(4, 6), {"inp": 3, "attn.out_proj": 12}, never={"out": "outputs"}),
    "mixer": Entry(
        Mixer, image(3, 16), {"blocks.0.tokens.0": 11, "blocks.0.channels.0": 13}, {"patch": "normali[sz]es"},
        never={"head": "outputs", "blocks.0.tokens.2": "mixes"}, blocks=["blocks.0"],
    ),
}  # fmt: skip
