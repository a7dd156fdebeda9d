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
    COLORS,
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
    ax.plot(a["width"], 100 * a["test_error"], "o", color="C2")
    printed = PAPER_ERRORS[str(a["data"])]
    ax.plot(list(printed), list(printed.values()), "x", color="k", label="Table 2")
    ax.set(xlabel="width", ylabel="test error (%)", xticks=a["width"])
    ax.legend()


# -- printed errors by parameters ------------------------------------------------------------------

# Percent, Tables 2 and 3. Parameters of nets that are built here are counted, those of ResNet-1001
# are printed by its authors (He et al. 2016, 10.2 million).
PRINTED_ERRORS = {
    "CIFAR-10": {"Dirac-28-5": 5.16, "Dirac-28-10": 4.75, "ResNet-1001": 4.92, "WRN-28-10": 4.00},
    "CIFAR-100": {
        "Dirac-28-5": 23.44, "Dirac-28-10": 21.54, "ResNet-1001": 22.71, "WRN-28-10": 19.25,
    },
    "ImageNet": {"Dirac-18": 30.37, "Dirac-34": 27.79, "ResNet-18": 29.62, "ResNet-34": 27.17},
}  # fmt: skip
RESNET_1001_PARAMETERS = 10.2e6
BUILT = {
    "Dirac-28-5": (rt.diracnet, 28, 5), "Dirac-28-10": (rt.diracnet, 28, 10),
    "WRN-28-10": (rt.preresnet, 28, 10), "Dirac-18": (rt.diracnet_imagenet, 18),
    "Dirac-34": (rt.diracnet_imagenet, 34), "ResNet-18": (rt.resnet_imagenet, 18),
    "ResNet-34": (rt.resnet_imagenet, 34),
}  # fmt: skip


def compute_by_parameters(*, nets: Sequence[str]) -> dict[str, np.ndarray]:
    """Count parameters of the nets whose errors the paper prints; nothing is trained."""
    counts = []
    with torch.device("meta"):
        for build, depth, *width in (BUILT[name] for name in nets):
            counts.append(parameters_of(build(depth, **({"width": width[0]} if width else {}))))
    return {"net": np.array(nets), "parameters": np.array(counts)}


def judge_by_parameters(a: Arrays) -> list[Criterion]:
    """Compare printed errors at counted sizes: arithmetic on the paper's tables."""
    size = {n: int(p) for n, p in zip(a["net"], a["parameters"], strict=True)}
    size["ResNet-1001"] = int(RESNET_1001_PARAMETERS)
    found = []

    def compared(data: str, left: str, right: str, most: float, says: str, where: str = "") -> None:
        apart = PRINTED_ERRORS[data][left] - PRINTED_ERRORS[data][right]
        found.append(
            Criterion(
                where or f"{data}: printed error of {left} less that of {right}, points",
                f"{'<' if most <= 0 else '≤'} {most:g} ({says})",
                f"{apart:+.2f}; {size[left]:,} and {size[right]:,} parameters",
                apart < most if most <= 0 else apart <= most,
            )
        )

    if "WRN-28-10" in size:
        for data in ("CIFAR-10", "CIFAR-100"):
            compared(data, "Dirac-28-10", "ResNet-1001", 0, "abstract: matches it")
            compared(data, "Dirac-28-10", "Dirac-28-5", 0, "Table 2")
            compared(data, "WRN-28-10", "ResNet-1001", 0, "abstract: capacity, and not depth")
            apart = PRINTED_ERRORS[data]["Dirac-28-10"] - PRINTED_ERRORS[data]["WRN-28-10"]
            found.append(
                Criterion(
                    f"{data}: printed error of Dirac-28-10 less that of WRN-28-10, points",
                    "> 0 at equal parameters, within 1 % (README: needs more for a close accuracy)",
                    f"{apart:+.2f}; {size['Dirac-28-10']:,} and {size['WRN-28-10']:,} parameters",
                    apart > 0 and abs(size["Dirac-28-10"] / size["WRN-28-10"] - 1) < 0.01,
                )
            )
        ratio = size["Dirac-28-10"] / size["ResNet-1001"]
        found.append(
            Criterion(
                "CIFAR-10: parameters of Dirac-28-10 over those of ResNet-1001",
                "> 1, while Dirac-28-5, as large, has the greater error (section 3.2: needs width)",
                f"{ratio:.1f}; Dirac-28-5 has {size['Dirac-28-5'] / size['ResNet-1001']:.2f} times "
                "as many",
                ratio > 1
                and PRINTED_ERRORS["CIFAR-10"]["Dirac-28-5"]
                > PRINTED_ERRORS["CIFAR-10"]["ResNet-1001"],
            )
        )
    for depth, printed in ((18, 11.7), (34, 21.8)):
        dirac, other = f"Dirac-{depth}", f"ResNet-{depth}"
        if dirac not in size:
            continue
        where = f"ImageNet, depth {depth}: printed top-1 error of {dirac} less that of {other}"
        compared("ImageNet", dirac, other, 1, "Table 3: close", where)
        found.append(
            Criterion(
                f"parameters of {dirac}, millions",
                f"{printed}, to 2 %, and those of {other}, to 3 % (Table 3; a, b and projections "
                "differ)",
                f"{size[dirac] / 1e6:.2f}, {size[other] / 1e6:.2f}",
                abs(size[dirac] / (1e6 * printed) - 1) < 0.02
                and abs(size[dirac] / size[other] - 1) < 0.03,
            )
        )
    return found


def draw_by_parameters(figure: Figure, a: Arrays) -> None:
    """Plot the paper's printed errors against our counts of parameters."""
    size = dict(zip(a["net"], a["parameters"] / 1e6, strict=True))
    size["ResNet-1001"] = RESNET_1001_PARAMETERS / 1e6
    for ax, (data, errors) in zip(figure.subplots(1, 3), PRINTED_ERRORS.items(), strict=True):
        for name, error in errors.items():
            if name in size:
                kind = "dirac" if name.startswith("Dirac") else "residual"
                ax.plot(size[name], error, "o", color=COLORS[kind])
                side = dict(textcoords="offset points", ha="center", fontsize="small")
                ax.annotate(name, (size[name], error), (0, 6), **side)
        ax.set(xlabel="parameters (millions)", ylabel="printed test error (%)", title=data)
        ax.margins(0.35, 0.2)


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
        id="diracnets/tables_by_parameters",
        kind="extension",
        source=f"{PAPER}, Tables 2 and 3 and section 3.2; README of the authors' code",
        says="By their printed errors DiracNets match ResNet-1001 with more parameters, have "
        "greater errors than wide residual nets of their size, and are close to residual nets on "
        "ImageNet (arithmetic on the paper's tables: nothing is trained).",
        settings={
            "quick": {"nets": ["Dirac-18", "ResNet-18"], "scaled": "ImageNet, depth 18"},
            "paper": {"nets": list(BUILT)},
        },
        compute=compute_by_parameters,
        judge=judge_by_parameters,
        draw=draw_by_parameters,
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
