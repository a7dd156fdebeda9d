"""Tiny nets of many kinds, with inputs for any number of samples; all modules are torch's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, FEATURES, TIMES, WORDS = 3, 3, 2, 5


@dataclass(frozen=True)
class NetRow:
    """A net, its inputs for m samples, and the axes of its output.

    ``form``: vector (m, k); scalar (m,); tokens (m, T, k); time_first (T, m, k); flat (m T, k);
    pixels (m, k, H, W). ``plain``: the output is one tensor. ``coupled``: samples know each other.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    form: str = "vector"
    plain: bool = True
    coupled: bool = False


@dataclass
class Output:
    """As the outputs of many libraries: fields by name."""

    logits: Tensor
    hidden: Tensor


class Function(nn.Module):
    """Modules by name under a function of them and the inputs."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.function(self, *inputs, **named)


class NormalizedWeight(nn.Module):
    """g v / |v| in differentiable operations; torch's own kernel has no right second derivative."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / v.square().sum(1, keepdim=True).sqrt()


def perceptron(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 4), *middle, nn.Tanh(), nn.Linear(4, CLASSES))


def with_hidden(wrap: Callable[[Tensor, Tensor], Any]) -> Function:
    def forward(net: Any, x: Tensor) -> Any:
        hidden = torch.tanh(net.body(x))
        return wrap(net.head(hidden), hidden)

    return Function(forward, body=nn.Linear(FEATURES, 4), head=nn.Linear(4, CLASSES))


def with_statistics(net: nn.Module) -> nn.Module:
    """Running statistics as after training."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


def convolutional(norm: nn.Module) -> nn.Sequential:
    first, last = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(8, CLASSES)
    return nn.Sequential(first, norm, nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), last)


def recurrent(kind: Callable[..., nn.Module], form: str) -> Function:
    def forward(net: Any, x: Tensor) -> Tensor:
        if form == "time_first":
            return net.head(net.body(x.transpose(0, 1))[0])
        states = net.body(x)[0]
        return net.head(states[:, -1] if form == "vector" else states)

    body = kind(FEATURES, 2, batch_first=form != "time_first")
    return Function(forward, body=body, head=nn.Linear(2, CLASSES))


def attention(fused: bool) -> Function:
    def forward(net: Any, words: Tensor) -> Tensor:
        z = net.words(words)
        mixed = F.scaled_dot_product_attention(z, z, z) if fused else net.mix(z, z, z)[0]
        return net.head(net.norm(z + mixed))

    mix = nn.Identity() if fused else nn.MultiheadAttention(2, 1, batch_first=True)
    parts = {"mix": mix, "norm": nn.LayerNorm(2), "head": nn.Linear(2, CLASSES)}
    return Function(forward, words=nn.Embedding(WORDS, 2), **parts)


def tied() -> Function:
    def forward(net: Any, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(net.body(x)), net.body.weight.T)

    return Function(forward, body=nn.Linear(FEATURES, 4))


def repeated() -> nn.Sequential:
    layer = nn.Linear(FEATURES, FEATURES)
    return nn.Sequential(layer, nn.Tanh(), layer)


def two_inputs() -> Function:
    def forward(net: Any, a: Tensor, b: Tensor) -> Tensor:
        return net.head(torch.tanh(net.first(a) + net.second(b)))

    first, second = nn.Linear(FEATURES, 3), nn.Linear(2, 3, bias=False)
    return Function(forward, first=first, second=second, head=nn.Linear(3, CLASSES))


def residual() -> Function:
    body, head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)
    return Function(lambda net, x: net.head(x + torch.tanh(net.body(x))), body=body, head=head)


def centring() -> Function:
    layer = nn.Linear(FEATURES, CLASSES)
    return Function(lambda net, x: torch.tanh(net.layer(x) - net.layer(x).mean(0)), layer=layer)


def unused() -> Function:
    body, spare = perceptron(), nn.Linear(2, 1)
    return Function(lambda net, x: net.body(x), body=body, spare=spare)


def numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda m: torch.randn(m, *shape)


def words(m: int) -> Tensor:
    return torch.randint(WORDS, (m, TIMES))


VECTORS, TIMED, IMAGES = numbers(FEATURES), numbers(TIMES, FEATURES), numbers(1, 4, 4)
NORM = nn.utils.parametrizations.weight_norm

NETS: dict[str, NetRow] = {
    "linear": NetRow(lambda: nn.Linear(FEATURES, CLASSES), VECTORS),
    "two linear layers": NetRow(
        lambda: nn.Sequential(
            nn.Linear(FEATURES, 4, bias=False), nn.Linear(4, CLASSES, bias=False)
        ),
        VECTORS,
    ),
    "perceptron": NetRow(perceptron, VECTORS),
    "scalar output": NetRow(
        lambda: nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)),
        VECTORS,
        "scalar",
    ),
    "convolutional": NetRow(lambda: convolutional(nn.Identity()), IMAGES),
    "pixels": NetRow(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, CLASSES, 1)),
        IMAGES,
        "pixels",
    ),
    "residual": NetRow(residual, VECTORS),
    "batch norm": NetRow(lambda: with_statistics(perceptron(nn.BatchNorm1d(4))), VECTORS),
    "batch norm of images": NetRow(
        lambda: with_statistics(convolutional(nn.BatchNorm2d(2))), IMAGES
    ),
    "batch norm without statistics": NetRow(
        lambda: perceptron(nn.BatchNorm1d(4, track_running_stats=False)), VECTORS, coupled=True
    ),
    "centring": NetRow(centring, VECTORS, coupled=True),
    "layer norm": NetRow(lambda: perceptron(nn.LayerNorm(4)), VECTORS),
    "dropout": NetRow(lambda: perceptron(nn.Dropout(0.5)), VECTORS),
    "tied weights": NetRow(tied, VECTORS),
    "repeated layer": NetRow(repeated, VECTORS),
    "unused layer": NetRow(unused, VECTORS),
    "weight norm": NetRow(
        lambda: nn.Sequential(NORM(nn.Linear(FEATURES, 4)), nn.Tanh(), nn.Linear(4, CLASSES)),
        VECTORS,
    ),
    "RNN, last state": NetRow(lambda: recurrent(nn.RNN, "vector"), TIMED),
    "LSTM": NetRow(lambda: recurrent(nn.LSTM, "tokens"), TIMED, "tokens"),
    "GRU, time first": NetRow(lambda: recurrent(nn.GRU, "time_first"), TIMED, "time_first"),
    "flattened tokens": NetRow(
        lambda: nn.Sequential(perceptron(), nn.Flatten(0, 1)), TIMED, "flat"
    ),
    "attention": NetRow(lambda: attention(False), words, "tokens"),
    "fused attention": NetRow(lambda: attention(True), words, "tokens"),
    "dict": NetRow(
        lambda: with_hidden(lambda z, h: {"logits": z, "hidden": h}), VECTORS, plain=False
    ),
    "tuple": NetRow(lambda: with_hidden(lambda z, h: (z, h)), VECTORS, plain=False),
    "dataclass": NetRow(lambda: with_hidden(Output), VECTORS, plain=False),
    "two inputs": NetRow(two_inputs, lambda m: (torch.randn(m, FEATURES), torch.randn(m, 2))),
    "two named inputs": NetRow(
        two_inputs, lambda m: {"b": torch.randn(m, 2), "a": torch.randn(m, FEATURES)}
    ),
}


# Inputs and outputs of any kind -------------------------------------------------------------------


def call(net: nn.Module, x: Any) -> Any:
    if isinstance(x, Mapping):
        return net(**x)
    return net(*x) if isinstance(x, (tuple, list)) else net(x)


def rows_of(x: Any, rows: Any) -> Any:
    """Some samples of inputs or targets."""
    if isinstance(x, Mapping):
        return {key: value[rows] for key, value in x.items()}
    return tuple(value[rows] for value in x) if isinstance(x, tuple) else x[rows]


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if is_dataclass(output):
        return [output.logits, output.hidden]
    return list(output.values() if isinstance(output, Mapping) else output)


def like(output: Any, parts: list[Tensor]) -> Any:
    """Other tensors in the same container."""
    if isinstance(output, Tensor):
        return parts[0]
    if isinstance(output, Mapping):
        return dict(zip(output, parts, strict=True))
    return Output(*parts) if is_dataclass(output) else tuple(parts)
