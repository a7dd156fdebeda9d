"""Inputs or a module's outputs in the place of parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice
from resid_theory.data import Batch, Data
from resid_theory.data.net_arguments import call_net
from resid_theory.nested import map_tensors, rows_of, tensors_of
from resid_theory.runtime.preserve import preserved


class VariedNet(nn.Module):
    """A net with a free displacement of every sample's activations; it takes sample numbers."""

    def __init__(self, net: nn.Module, content: Any, size: int, wrt: str, like: Tensor) -> None:
        super().__init__()
        self.net, self._content, self._size, self._wrt = net, content, size, wrt
        self._name = "inputs" if wrt == "inputs" else "activations"
        zeros = like.new_zeros(size, *like.shape[1:])
        self.register_parameter(self._name, nn.Parameter(zeros))

    def forward(self, rows: Tensor) -> Any:
        """The net's output for these samples."""
        x, moves = rows_of(self._content, rows, self._size), self.get_parameter(self._name)[rows]
        if self._wrt == "inputs":
            x = map_tensors(x, lambda t: t + moves if t.is_floating_point() else t)
            return call_net(self.net, x)
        module = self.net.get_submodule(self._wrt)
        with module.register_forward_hook(lambda m, a, output: output + moves):
            return call_net(self.net, x)


@torch.inference_mode(False)
def vary_activations(net: nn.Module, data: Any, wrt: str) -> tuple[nn.Module, Data]:
    """A module whose one parameter displaces inputs or a module's outputs, and its data."""
    check_choice("wrt", wrt, ["parameters", "inputs", *(n for n, _ in net.named_modules() if n)])
    whole = Data.of(data, like=net).whole()
    x, y = whole.pair
    x = map_tensors(x, torch.clone)  # the caller's may change
    varied = VariedNet(net, x, whole.size, wrt, _found(net, whole, wrt))
    varied.training = net.training  # its parts have their own modes
    rows = torch.arange(whole.size)
    return varied, Data.of((rows, y), like=varied, sample_weight=whole.sample_weight)


def _found(net: nn.Module, whole: Batch, wrt: str) -> Tensor:
    """The activations of a few samples."""
    few = whole.ends()
    found = [t for t in tensors_of(few.inputs) if t.is_floating_point()]
    needed = "one floating-point tensor with a row for each sample"
    if wrt == "inputs":
        if [len(tensor) for tensor in found] != [few.size]:
            raise ValueError(
                f"data x: has {len(found)} floating-point tensors, needs {needed} for "
                "wrt='inputs'; of tokens name the embedding, e.g. wrt='embedding'"
            )
        (x,) = found
        return x
    outputs: list[Any] = []
    module = net.get_submodule(wrt)
    with module.register_forward_hook(lambda m, a, o: outputs.append(o)):
        with preserved(net), torch.no_grad():
            few.try_call(net)
    if len(outputs) != 1:
        raise ValueError(
            f"wrt: module {wrt!r} runs {len(outputs)} times in a pass, needs one that runs once"
        )
    (output,) = outputs
    if not (isinstance(output, Tensor) and output.is_floating_point() and output.dim()) or (
        len(output) != few.size
    ):
        kind = type(output).__name__
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else kind
        raise ValueError(
            f"wrt: module {wrt!r} gives {given} for {few.size} samples, needs {needed}"
        )
    return output
