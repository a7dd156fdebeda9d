"""Order and cost of the trainings that are open: which of them a given time is enough for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from experiments.parts import Part, Request
from experiments.trainings import Training

# Nets of seed 0, in order of what a minute of them tells: builder, and its arguments that are not
# at their defaults.
FIRST = (
    ("simplified_net", {"depth": 20}), ("simplified_net", {"depth": 20, "identity": "residual"}),
    ("simplified_net", {"depth": 44}), ("simplified_net", {"depth": 44, "identity": "residual"}),
    ("full_net", {"depth": 20}), ("full_net", {"depth": 20, "shortcut": False}),
    ("diracnet", {"depth": 28}), ("diracnet", {"depth": 28, "identity": "plain"}),
    ("diracnet", {"depth": 34}), ("diracnet", {"depth": 34, "identity": "plain"}),
    ("diracnet", {"depth": 52}), ("diracnet", {"depth": 52, "identity": "plain"}),
    ("diracnet", {"depth": 28, "width": 5}),
)  # fmt: skip
# Depth, and milliseconds of a step of 128 images, measured on one H100 with torch 2.11, kernels
# launched one by one, in the precision of the recipe, channels last. Twice the layers take twice
# the time, because the launches do. ``preresnet`` has the layers of ``full_net``.
STEPS = {
    "simplified_net": (20, 6.6), "full_net": (20, 13.4), "preresnet": (20, 13.4),
    "diracnet": (28, 15.5), "diracnet plain": (28, 15.5),
}  # fmt: skip
# Of Dirac weights at any depth: 145 operations (``python -m benchmarks.training``), at 17 µs each:
# 600 of them, one layer at a time, took 10.3 ms of depth 28.
DIRAC_WEIGHTS = 2.5
# Counted: forward and backward passes of a layer of width 1, in GFLOP a step of 128, and TFLOP a
# second in bfloat16. A wide net takes the greater of this and of its launches.
LAYER_GFLOP, RATE_TFLOP = 1.5, 150.0
MEASURING, START = 1.08, 10.0  # share of evaluation (measured), seconds until the first step
TOGETHER = 1.2  # measured: two trainings side by side do the work of so many
IMAGES = {"cifar10": 50_000, "mnist": 60_000, "digits": 1_437}


def kind_of(training: Training) -> str:
    """Row of ``STEPS``: the builder, and "plain" where its layers have no Dirac weights."""
    builder = training.architecture["builder"]
    identity = training.architecture["arguments"].get("identity", "dirac")
    return f"{builder} plain" if (builder, identity) == ("diracnet", "plain") else builder


def label(training: Part) -> str:
    """A part in a few words."""
    if not isinstance(training, Training):
        return str(training.cell)
    architecture = training.content()["architecture"]
    given = architecture["arguments"]
    others = [f"{v}" if isinstance(v, str) else f"{k} {v}"
              for k, v in given.items() if k not in ("depth", "generator")]  # fmt: skip
    others += architecture.get("then", [])
    words = [training.architecture["builder"], str(given.get("depth", "")), *others]
    if training.initial is not None:
        words.append("{law} {scale:g}".format(**training.initial))
    if training.recipe.precision == "float32":  # a control: all others allow less
        words.append("float32")
    return " ".join([*filter(None, words), f"seed {training.seed}", training.data])


def milliseconds(training: Training, ratio: float = 1.0) -> float:
    """Duration of a step by the model; ``ratio`` of measured launches to those of ``STEPS``."""
    given = training.architecture["arguments"]
    depth, reference = STEPS.get(kind_of(training), STEPS["full_net"])
    extra = DIRAC_WEIGHTS if kind_of(training) == "diracnet" else 0.0
    launches = ratio * (reference * given.get("depth", depth) / depth + extra)
    share = training.recipe.batch / 128
    products = given.get("depth", depth) * given.get("width", 1) ** 2 * LAYER_GFLOP * share
    return max(launches, products / RATE_TFLOP)


def steps(training: Part) -> int:
    """Number of steps of a training; 0 of another part."""
    if not isinstance(training, Training):
        return 0
    images = training.samples or IMAGES.get(training.data, 50_000)
    return training.recipe.epochs * ceil(images / training.recipe.batch)


def duration(steps: int, milliseconds: float) -> float:
    """Seconds of a training that has the machine for itself."""
    return START + MEASURING * steps * milliseconds / 1e3


def in_order(requests: Mapping[str, Sequence[Request]], scales: Sequence[str]) -> list[Training]:
    """Trainings by worth, from all requests of each by key; ``scales``, the most wanted first."""
    trainings = [asked[0].part for asked in requests.values()]
    claims = {key: len({request.claim for request in asked}) for key, asked in requests.items()}

    def net(training: Training) -> tuple[object, ...]:
        """What ``FIRST`` says of a training; empty if it is of another kind."""
        given = dict(training.content()["architecture"])
        arguments = dict(given.pop("arguments"))
        arguments.pop("generator", None)
        usual = (training.seed, training.initial, training.data) == (0, None, "cifar10")
        return (given["builder"], arguments) if usual and len(given) == 1 else ()

    # Of several recipes of a net, the one that most claims ask for.
    firsts = {}
    for training in sorted(trainings, key=lambda training: claims[training.key]):
        if net(training) in FIRST:
            firsts[FIRST.index(net(training))] = training.key
    ranks = {key: rank for rank, key in firsts.items()}

    def worth(training: Training) -> tuple[object, ...]:
        key = training.key
        scale = min(scales.index(request.scale) for request in requests[key])
        rank = ranks.get(key, len(FIRST))
        cost = duration(steps(training), milliseconds(training))
        return rank, scale, training.seed, cost, label(training), key

    return sorted(trainings, key=worth)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the time table: seconds alone, and when it ends if two run side by side."""

    training: Training
    seconds: float
    ends: float


def time_table(trainings: Sequence[Training]) -> list[Row]:
    """Estimates of trainings in a given order."""
    rows, ends = [], 0.0
    for training in trainings:
        alone = duration(steps(training), milliseconds(training))
        ends += alone / TOGETHER
        rows.append(Row(training=training, seconds=alone, ends=ends))
    return rows


def printed(rows: Sequence[Row], available: float) -> str:
    """The table as text; a star marks what ends within ``available`` seconds."""
    lines = [f"{'':2}{'seconds':>8} {'ends at':>8}  training"]
    for row in rows:
        star = "*" if row.ends <= available else " "
        lines.append(f"{star} {row.seconds:8.0f} {row.ends:8.0f}  {label(row.training)}")
    fits = sum(row.ends <= available for row in rows)
    told = f"{fits} of {len(rows)} end within {available:.0f} s"
    # As a CUDA graph, simplified_net 20 took 179 s of an H200.
    return "\n".join([*lines, f"{told}, launched kernel by kernel; CUDA graphs take less"])
