"""Nets with shortcuts, as their authors' users write them in plain PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RepVGG(nn.Module):
    """relu(BN(3x3) + BN(1x1) + BN(x))."""

    def __init__(self, width: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        options = {"stride": stride, "groups": groups, "bias": False}
        self.dense = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, **options), nn.BatchNorm2d(width)
        )
        self.small = nn.Sequential(nn.Conv2d(width, width, 1, **options), nn.BatchNorm2d(width))
        self.identity = nn.BatchNorm2d(width) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        own = 0 if self.identity is None else self.identity(x)
        return F.relu(self.dense(x) + self.small(x) + own)


class ACNet(nn.Module):
    """relu(BN(3x3) + BN(1x3) + BN(3x1))."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        sides = ((3, 3), (1, 3), (3, 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, side, padding=(side[0] // 2, side[1] // 2), bias=False)
            for side in sides
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in sides)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(sum(norm(conv(x)) for conv, norm in zip(self.convs, self.norms)))  # noqa: B905


class DiverseBranch(nn.Module):
    """DBB: 3x3, 1x1, 1x1 then 3x3, 1x1 then average, each with BN."""

    def __init__(self, inputs: int, outputs: int, middle: int = 5) -> None:
        super().__init__()
        one = [nn.Conv2d(inputs, outputs, 1, bias=False) for _ in range(2)]
        self.branches = nn.ModuleList([
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)),
            nn.Sequential(one[0], nn.BatchNorm2d(outputs)),
            nn.Sequential(
                nn.Conv2d(inputs, middle, 1, bias=False),
                nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
            ),
            nn.Sequential(one[1], nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(outputs)),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out += branch(x)
        return out


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions, the stride in the middle one."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, stride: int = 1, *, groups: int = 1,
        pooled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            pool = [nn.AvgPool2d(stride)] if pooled and stride > 1 else []
            steps = 1 if pool else stride
            self.downsample = nn.Sequential(
                *pool, nn.Conv2d(inputs, outputs, 1, steps, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Stem, four stages of bottlenecks, classifier; ResNet-50 by default."""

    def __init__(
        self, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000,
        groups: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            middle, outputs = width * 2**stage, 4 * width * 2**stage
            parts = []
            for block in range(count):
                stride = 2 if stage and not block else 1
                parts.append(Bottleneck(inputs, middle, outputs, stride, groups=groups))
                inputs = outputs
            stages.append(nn.Sequential(*parts))
        self.stages = nn.Sequential(*stages)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.pool(self.stages(x)), 1))


class ConvMixer(nn.Module):
    """x + BN(GELU(depthwise(x))), then a pointwise layer."""

    def __init__(self, width: int, side: int = 5) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, side, groups=width, padding="same")
        self.norm, self.pointwise = nn.BatchNorm2d(width), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.pointwise(x + self.norm(F.gelu(self.depthwise(x)))))


class Residual(nn.Module):
    """x + branch(x), or the projection of x."""

    def __init__(self, *branch: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.projection = nn.Sequential(*branch), projection

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.projection is None else self.projection(x)) + self.branch(x)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gated(nn.Module):
    """W_o (φ(W_g x) * W_i x)."""

    def __init__(self, width: int, hidden: int, function, *, bias: bool = False) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=bias) for _ in range(2))
        self.down, self.function = nn.Linear(hidden, width, bias=bias), function

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.function(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Causal attention of all heads in one call."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        shape = batch, tokens, 3, self.heads, width // self.heads
        q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(out.transpose(1, 2).reshape(batch, tokens, width))


class RMSNorm(nn.Module):
    """u / sqrt(mean(u²) + eps), written out as in Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Transformer(nn.Module):
    """A pre-LN language model."""

    def __init__(self, layers: int, width: int, heads: int, words: int, tokens: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            mlp = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            self.blocks.append(Residual(nn.LayerNorm(width), Attention(width, heads)))
            self.blocks.append(Residual(nn.LayerNorm(width), *mlp))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class DiracLayer(nn.Module):
    """conv(x, diag(a) I + diag(b) V), the weight made in the forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.rand(width, 1, 1, 1)) for _ in range(2))
        self.V = nn.Parameter(torch.randn(width, width, 3, 3))
        self.register_buffer("delta", nn.init.dirac_(torch.empty(width, width, 3, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.a * self.delta + self.b * self.V, padding=1)


def scattered(net: nn.Module, seed: int = 0) -> nn.Module:
    """A net in eval mode whose BatchNorms have statistics, scales and shifts of their own."""
    source = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5), (module.running_var, 0.5, 2.0),
                (module.bias, -1, 1), (module.running_mean, -1, 1),
            ):  # fmt: skip
                tensor.data.uniform_(low, high, generator=source)
    return net.eval()


def families() -> dict[str, tuple[nn.Module, Tensor]]:
    """Nets whose shortcuts can all enter the weights, with an input, in float64."""
    torch.manual_seed(0)
    conv, linear, relu = nn.Conv2d, nn.Linear, nn.ReLU
    images, rows = torch.randn(2, 6, 11, 10), torch.randn(9, 6)
    signed = Residual(conv(6, 9, 3, padding=1), relu(), conv(9, 6, 3, padding=1))
    strided = Residual(
        conv(6, 9, 3, 2, 1), relu(), conv(9, 8, 3, padding=1), projection=conv(6, 8, 1, 2)
    )
    dilated = Residual(conv(6, 9, 3, padding=2, dilation=2), nn.SiLU(), conv(9, 6, 1))
    before = nn.Sequential(conv(6, 8, 3), nn.BatchNorm2d(8), relu())
    preactivation = Residual(
        nn.BatchNorm2d(6), relu(), conv(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), relu(),
        conv(6, 6, 3, padding=1, bias=False),
    )  # fmt: skip
    nets = {
        "RepVGG": (nn.Sequential(RepVGG(6), RepVGG(6, stride=2), RepVGG(6, groups=3)), images),
        "ACNet": (ACNet(6, 5), images),
        "DBB": (DiverseBranch(6, 7), images),
        "ResNet": (ResNet((2, 1, 1, 1), 4, 5), torch.randn(2, 3, 33, 33)),
        "ResNeXt": (ResNet((1, 1, 1, 1), 4, 5, groups=2), torch.randn(2, 3, 33, 33)),
        "ResNet-D": (
            nn.Sequential(before, Bottleneck(8, 4, 12, pooled=True), Bottleneck(12, 3, 12)), images,
        ),
        "pre-activation": (preactivation, images),
        "RMNet, signed": (signed, images),
        "RMNet, stride 2": (nn.Sequential(conv(6, 6, 1), relu(), strided), images),
        "dilated, SiLU": (dilated, images),
        "ConvMixer": (nn.Sequential(ConvMixer(6), ConvMixer(6, 3)), images),
        "linear": (Residual(linear(6, 4), linear(4, 6)), rows),
        "ReLU, 2 layers": (nn.Sequential(*(Residual(linear(6, h), relu(), linear(h, 6))
                                           for h in (9, 6, 2))), rows),
        "LeakyReLU, 3 layers": (Residual(linear(6, 5), nn.LeakyReLU(0.1), linear(5, 4),
                                         nn.LeakyReLU(0.2), linear(4, 6)), rows),
        "QuickGELU": (Residual(linear(6, 9), Apply(lambda t: t * torch.sigmoid(1.702 * t)),
                               linear(9, 6)), rows),
        "shortcut around shortcuts": (Residual(Residual(linear(6, 9), nn.GELU(), linear(9, 6)),
                                               nn.Hardswish(), linear(6, 6)), rows),
    }  # fmt: skip
    return {name: (scattered(net.double()), x.double()) for name, (net, x) in nets.items()}
