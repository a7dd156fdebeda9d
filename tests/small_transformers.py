"""Transformers of plain PyTorch, small enough for dense Hessians; none of our code in them."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width).uniform_(0.5, 1.5))

    def forward(self, x):
        return self.gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


class LayerNorm(nn.LayerNorm):
    def reset_parameters(self):
        nn.init.uniform_(self.weight, 0.5, 1.5)
        if self.bias is not None:
            nn.init.normal_(self.bias)


class Attention(nn.Module):
    """Full or causal, with groups of heads, biases of scores and rotary positions."""

    def __init__(self, width, *, heads, kv_heads, causal, bias, out_bias, alibi, fused):
        super().__init__()
        self.heads, self.kv_heads, self.each = heads, kv_heads, width // heads
        self.causal, self.alibi = causal, alibi
        sizes = [heads * self.each, kv_heads * self.each, kv_heads * self.each]
        self.sizes = sizes
        if fused:
            self.qkv = nn.Linear(width, sum(sizes), bias=bias)
        else:
            self.q, self.k, self.v = (nn.Linear(width, size, bias=bias) for size in sizes)
        self.fused = fused
        self.o = nn.Linear(sizes[0], width, bias=out_bias)

    def forward(self, x):
        parts = (
            self.qkv(x).split(self.sizes, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        )
        q, k, v = (part.unflatten(-1, (-1, self.each)).transpose(1, 2) for part in parts)
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
        scores = q @ k.mT / math.sqrt(self.each)
        places = torch.arange(x.shape[1])
        if self.alibi:
            slopes = torch.linspace(0.2, 1.0, self.heads)
            scores = scores - slopes[:, None, None] * (places[:, None] - places).abs()
        if self.causal:
            scores = scores.masked_fill(places[:, None] < places, -math.inf)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width, hidden, *, kind, bias, out_bias):
        super().__init__()
        self.kind = kind
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=out_bias)
        if kind == "gated":
            self.gate = nn.Linear(width, hidden, bias=bias)

    def forward(self, x):
        if self.kind == "gated":
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(getattr(torch if hasattr(torch, self.kind) else F, self.kind)(self.up(x)))


class Block(nn.Module):
    def __init__(self, width, *, order, norm, scale, mlp, hidden, bias, out_bias, **attention):
        super().__init__()
        self.order = order
        self.n1, self.n2 = norm(width), norm(width)
        self.attention = Attention(width, bias=bias, out_bias=out_bias, **attention)
        self.mlp = MLP(width, hidden, kind=mlp, bias=bias, out_bias=out_bias)
        self.scale = nn.Parameter(torch.empty(width).uniform_(0.1, 0.9)) if scale else 1.0

    def forward(self, x):
        if self.order == "post":
            x = self.n1(x + self.scale * self.attention(x))
            return self.n2(x + self.scale * self.mlp(x))
        if self.order == "parallel":
            return x + self.scale * (self.attention(self.n1(x)) + self.mlp(self.n2(x)))
        x = x + self.scale * self.attention(self.n1(x))
        return x + self.scale * self.mlp(self.n2(x))


class LanguageModel(nn.Module):
    """Words in, logits out; the table of words is the read-out, too, if they are tied."""

    def __init__(
        self, *, layers=2, width=4, words=7, tied=False, order="pre", norm=LayerNorm, scale=False,
        heads=2, kv_heads=None, causal=True, mlp="gelu", hidden=5, bias=False, out_bias=False,
        alibi=False, fused=False, tokens=5,
    ):  # fmt: skip
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(
            Block(width, order=order, norm=norm, scale=scale, mlp=mlp, hidden=hidden, bias=bias,
                  out_bias=out_bias, heads=heads, kv_heads=kv_heads or heads, causal=causal,
                  alibi=alibi, fused=fused)
            for _ in range(layers)
        )  # fmt: skip
        self.norm = norm(width) if order != "post" else nn.Identity()
        self.head = nn.Linear(width, words, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def branch_weights(self):
        """Weights and biases of branches, by name."""
        inside = [
            f"blocks.{n}.{part}" for n in range(len(self.blocks)) for part in ("attention", "mlp")
        ]
        return {n: p for n, p in self.named_parameters() if n.startswith(tuple(inside))}
