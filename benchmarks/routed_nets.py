"""Products of weights as torch's dispatcher sees them, and cushions of routed nets beside these."""

import collections

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import resid_theory as rt

__all__ = ["Products", "routed_nets"]


class Products(TorchDispatchMode):
    """Ratios ‖W x‖ / (‖W‖ ‖x‖) of all products with a parameter, by the parameter's storage."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.storages = {p.untyped_storage().data_ptr(): p for p in net.parameters()}
        self.copies: dict[int, tuple[int, Tensor]] = {}  # in other precisions or layouts
        self.ratios: dict[int, list[float]] = collections.defaultdict(list)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D105
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        pair = {"mm": args[:2], "bmm": args[:2], "addmm": args[1:3], "baddbmm": args[1:3],
                "mv": args[:2]}.get(name, ())  # fmt: skip
        for at, factor in enumerate(pair):
            if where := self.place(factor):
                self.add(where, factor, pair[1 - at], pair[0] @ pair[1])
        if name == "convolution" and (where := self.place(args[1])):
            self.add(where, args[1], args[0], func(*args[:2], None, *args[3:]))
        result = func(*args, **kwargs)
        if name in ("_to_copy", "clone") and (where := self.place(args[0])):
            self.copies[result.untyped_storage().data_ptr()] = where, result
        return result

    def place(self, tensor: Tensor) -> int:
        """Address of the parameter that a tensor is, is a part of or is a copy of; or 0."""
        address = tensor.untyped_storage().data_ptr()
        return address if address in self.storages else self.copies.get(address, (0,))[0]

    def add(self, where: int, weight: Tensor, x: Tensor, y: Tensor) -> None:
        """Note a product, and one for each matrix of a stack."""
        stacked = weight.dim() == x.dim() == 3 and len(weight) == len(x)
        stacks = zip(weight, x, y, strict=True) if stacked else ()
        for w, z, out in ((weight, x, y), *stacks):
            self.ratios[where].append(float(out.norm() / (w.norm() * z.norm())))


class Routed(nn.Module):
    """Experts, each of which takes the tokens that a router sends there, in one of three forms."""

    def __init__(self, width: int, experts: int, top: int, form: str) -> None:
        super().__init__()
        self.top, self.form = top, form
        self.gate = nn.Linear(width, experts, bias=False)
        if form == "stacked":
            self.up = nn.Parameter(torch.randn(experts, width, width) / width**0.5)
        else:
            self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs."""
        flat = x.flatten(0, 1)
        score, pick = self.gate(flat).softmax(-1).topk(self.top, -1)
        out = torch.zeros_like(flat)
        for expert in range(self.gate.out_features):
            rows, place = (pick == expert).nonzero(as_tuple=True)
            if self.form == "skipping" and not len(rows):
                continue
            taken = flat[rows]
            stacked = self.form == "stacked"
            made = taken @ self.up[expert] if stacked else self.experts[expert](taken)
            out = out.index_add(0, rows, made * score[rows, place, None])
        return x + out.view_as(x)


def routed_nets(count: int) -> dict[str, int]:
    """Values of random routed nets against products that the dispatcher sees, sample by sample."""
    found = {"nets": count, "values": 0, "wrong": 0, "refused": 0, "crashed": 0}
    for seed in range(count):
        torch.manual_seed(seed)
        form = ("listed", "skipping", "stacked")[seed % 3]
        width, experts, top = 4 + seed % 5, 2 + seed % 4, 1 + seed % 2
        layers = [nn.Linear(width, width), *(Routed(width, experts, top, form) for _ in range(2))]
        net, x = nn.Sequential(*layers).double(), torch.randn(4, 3, width).double()
        try:
            cushions = rt.layer_cushions(net, x, weight="effective")
        except ValueError:
            found["refused"] += 1
            continue
        except Exception:
            found["crashed"] += 1
            continue
        for sample in range(len(x)):
            with torch.no_grad(), Products(net) as products:
                net(x[sample : sample + 1])
            for row, value in zip(cushions.layers, cushions.values[:, sample], strict=True):
                stack, _, index = row.partition("[")
                weight = net.get_parameter(stack if index else f"{row}.weight")
                known = products.ratios.get(weight.untyped_storage().data_ptr(), [])
                found["values"] += 1
                if value.isnan():  # right where the sample has no row there
                    found["wrong"] += not index and any(r == r for r in known)
                else:
                    found["wrong"] += not any(abs(r - value) < 1e-8 * value for r in known)
    return found
