"""DiracNets: structure of the nets and errors of the widest, Tables 1 and 2."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, below, near
from experiments.diracnets.nets import (
    FULL,
    ONE,
    ONE_SEED,
    PAPER,
    each_seed,
    parameters_of,
    trainings_of,
)
from experiments.external_data import CIFAR100
from experiments.parts import Each, in_turn
from experiments.trainings import fits

# -- Table 1 ---------------------------------------------------------------------------------------

# Trainable parameters, counted in the authors' code; the paper prints 9.1 and 36.5 million.
COUNTS = {
    (10, 1): 75_738, (16, 1): 173_402, (22, 1): 271_066, (28, 1): 368_730, (34, 1): 466_394,
    (40, 1): 564_058, (52, 1): 759_386, (100, 1): 1_540_698, (34, 2): 1_854_378,
    (28, 5): 9_124_250, (28, 10): 36_450_090,
}  # fmt: skip
PRINTED = {(28, 5): 9.1, (28, 10): 36.5}


def compute_table_1(*, nets: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Count parameters of all nets; of the first net also the layers and shape of its groups."""
    depth, width = nets[0]
    shapes, counts = _groups(rt.diracnet(depth, width=width))
    return {
        "net": np.array(nets),
        "parameters": np.array([parameters_of(rt.diracnet(d, width=k)) for d, k in nets]),
        "group_shape": np.array(shapes),
        "group_layers": np.array(counts),
    }


def _groups(net: torch.nn.Module) -> tuple[list[tuple[int, ...]], list[int]]:
    """Channels, height and width in each group, and its number of convolutions."""
    x, shapes = torch.zeros(2, 3, 32, 32), []  # BatchNorm in train mode needs two samples
    for layer in net.children():
        x = layer(x)
        if isinstance(layer, torch.nn.Conv2d):
            shapes.append(tuple(x.shape[1:]))
    distinct = list(dict.fromkeys(shapes[1:]))
    return distinct, [shapes[1:].count(shape) for shape in distinct]


def judge_table_1(a: Arrays) -> list[Criterion]:
    """Require the printed structure and exact numbers of parameters."""
    (depth, width), *_ = a["net"].tolist()
    n = (depth - 4) // 6
    wanted = [(16 * width * 2**group, 32 >> group, 32 >> group) for group in range(3)]
    found = {tuple(net): int(count) for net, count in zip(a["net"], a["parameters"], strict=True)}
    wrong = {net: count for net, count in found.items() if count != COUNTS.get(net)}
    printed = {net: found[net] / 1e6 for net in PRINTED if net in found}
    structure = [
        Criterion(
            f"DiracNet-{depth}-{width}: channels and resolution of the groups",
            "16k x 32 x 32, 32k x 16 x 16, 64k x 8 x 8 (Table 1)",
            ", ".join(" x ".join(str(side) for side in shape) for shape in a["group_shape"]),
            a["group_shape"].tolist() == [list(shape) for shape in wanted],
        ),
        Criterion(
            f"DiracNet-{depth}-{width}: convolutions of the groups",
            f"2N = {2 * n} each (Table 1)",
            ", ".join(str(count) for count in a["group_layers"]),
            a["group_layers"].tolist() == [2 * n] * 3,
        ),
        Criterion(
            f"parameters of {len(found)} nets, depth {a['net'][:, 0].min()} to "
            f"{a['net'][:, 0].max()}, width {a['net'][:, 1].min()} to {a['net'][:, 1].max()}",
            "equal to those counted in the authors' code",
            "all equal" if not wrong else str(wrong),
            not wrong,
        ),
    ]
    return structure + [
        Criterion(
            f"parameters of DiracNet-{depth}-{width}, millions",
            f"{PRINTED[depth, width]}, to the printed digit (Table 2)",
            f"{millions:.2f}",
            abs(millions - PRINTED[depth, width]) <= 0.05,
        )
        for (depth, width), millions in printed.items()
    ]


def draw_table_1(figure: Figure, a: Arrays) -> None:
    """Plot parameters against depth by width."""
    ax = figure.subplots()
    depth, width = a["net"].T
    for k in np.unique(width):
        ax.semilogy(depth[width == k], a["parameters"][width == k], "o-", label=f"width {k}")
    ax.set(xlabel="depth", ylabel="trainable parameters")
    ax.legend()


# -- Table 2 ---------------------------------------------------------------------------------------

PAPER_ERRORS = {"cifar10": {5: 5.16, 10: 4.75}, "cifar100": {5: 23.44, 10: 21.54}}  # percent
RESNET_1001 = {"cifar10": 4.92, "cifar100": 22.71}  # percent, Table 2
HALF_POINT = 0.5  # three of the paper's standard deviations of 5 seeds, 0.14 to 0.16


def compute_table_2(
    *,
    data: str,
    widths: Sequence[int],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the final test error of wide DiracNets of depth 28, all seeds."""
    given = {**training, "name": data}
    classes = 100 if data == "cifar100" else 10
    nets = {
        width: trainings_of("dirac", given, depth=28, width=width, classes=classes)
        for width in widths
    }
    rows = [each_seed(row, "test_error") for row in fits(nets, each, device).values()]
    return {"data": np.array(data), "width": np.array(widths), "test_error": np.array(rows)}


def judge_table_2(a: Arrays) -> list[Criterion]:
    """Require the paper's errors, and of the widest net that of a residual net of 1001 layers."""
    data = str(a["data"])
    errors = dict(zip(a["width"].tolist(), 100 * a["test_error"], strict=True))
    found = [
        near(
            f"DiracNet-28-{width}: test error, %",
            error,
            PAPER_ERRORS[data][width],
            margin=HALF_POINT,
            source="Table 2",
        )
        for width, error in errors.items()
    ]
    if 10 in errors:
        found.append(
            below(
                "DiracNet-28-10: test error, %",
                errors[10],
                RESNET_1001[data] + HALF_POINT,
                source=f"abstract: matches ResNet-1001, of {RESNET_1001[data]} % in Table 2",
            )
        )
    return found


def draw_table_2(figure: Figure, a: Arrays) -> None:
    """Plot error against width, one dot per seed, crosses for the paper."""
    ax = figure.subplots()
    ax.plot(a["width"], 100 * a["test_error"], "o", color="tab:green")
    printed = PAPER_ERRORS[str(a["data"])]
    ax.plot(list(printed), list(printed.values()), "x", color="k", label="Table 2")
    ax.set(xlabel="width", ylabel="test error, %", xticks=a["width"])
    ax.legend()


# -- the claims ------------------------------------------------------------------------------------

NETS = [list(net) for net in COUNTS]


def _table_2(data: str) -> dict[str, dict[str, object]]:
    return {
        "single": {
            "data": data, "widths": [5], "training": ONE,
            "scaled": f"DiracNet-28-5 only, {ONE_SEED}",
        },
        "paper": {"data": data, "widths": [5, 10], "training": FULL},
    }  # fmt: skip


CLAIMS = [
    Claim(
        id="diracnets/table_1",
        source=f"{PAPER}, Table 1",
        says="A DiracNet is a stem, three groups of 2N convolutions and a classifier, with as many "
        "parameters as a residual net of its shape.",
        settings={
            "quick": {"nets": NETS[:3], "scaled": "three nets of eleven"},
            "paper": {"nets": NETS},
        },
        compute=compute_table_1,
        judge=judge_table_1,
        draw=draw_table_1,
    ),
    Claim(
        id="diracnets/table_2_cifar_10",
        source=f"{PAPER}, Table 2, CIFAR-10",
        says="Wide DiracNets of 28 layers match the error of a residual net of 1001 layers.",
        settings=_table_2("cifar10"),
        compute=compute_table_2,
        judge=judge_table_2,
        draw=draw_table_2,
    ),
    Claim(
        id="diracnets/table_2_cifar_100",
        source=f"{PAPER}, Table 2, CIFAR-100",
        says="Wide DiracNets of 28 layers match the error of a residual net of 1001 layers.",
        settings=_table_2("cifar100"),
        compute=compute_table_2,
        judge=judge_table_2,
        draw=draw_table_2,
        needs={"single": CIFAR100, "paper": CIFAR100},
    ),
]
