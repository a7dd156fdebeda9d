"""Dominant gradient flows in nets, Appendix D; their theory is in ``gaussian``.

The available text does not give, and we chose, the depth of Figure 12 and the paths of nets with
BatchNorm. The net "after the first iteration" is taken as the net at its initial weights.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim, Verdict
from experiments.noise_stability.nets import PAPER
from experiments.parts import Each, in_turn
from experiments.shipped import SHORT_EPOCHS, listed_nets
from experiments.trainings import FULL_EPOCHS, image_set
from resid_theory.stability import STATISTICS, feature_gradients

# -- Figure 10 -------------------------------------------------------------------------------------


def compute_figure_10(
    *,
    nets: Sequence[str],
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    epochs: int = SHORT_EPOCHS,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute moments and histogram of the loss gradient in the final features."""
    listed = listed_nets(nets, states, each, device, epochs=epochs)
    data = image_set(dataset, "train", samples, size)
    arrays = {"samples": np.array(samples)}
    for name in nets:
        for state in states:
            net = listed[name, state]
            g = feature_gradients(net, data).double().cpu().numpy()
            spread = g.std()
            counts, edges = np.histogram(g / spread, bins=80, range=(-5, 5))
            moments = [g.mean() / spread, ((g - g.mean()) ** 4).mean() / spread**4, spread]
            key = f"{name}.{state}"
            arrays |= {f"{key}.moments": np.array(moments), f"{key}.counts": counts}
            arrays["edges"] = edges
    return arrays


def _keys(a: Arrays, ending: str) -> list[str]:
    # Sorted, because a record read from a file has its arrays in another order.
    return sorted(key.removesuffix(ending) for key in a if key.endswith(ending))


def judge_figure_10(a: Arrays) -> list[Verdict]:
    """Require a mean near zero; the kurtosis is reported."""
    return [
        Verdict(
            f"mean over standard deviation of dR/da_L, {key.replace('.', ', ')}",
            "|mean/std| < 0.1 (the paper's histogram is centred)",
            f"{a[f'{key}.moments'][0]:+.4f}, kurtosis {a[f'{key}.moments'][1]:.2f} "
            f"(normal: 3), {int(a['samples'])} samples",
            abs(float(a[f"{key}.moments"][0])) < 0.1,
        )
        for key in _keys(a, ".moments")
    ]


def draw_figure_10(figure: Figure, a: Arrays) -> None:
    """Plot histograms in units of the standard deviation, and the normal density."""
    ax = figure.subplots()
    middle = (a["edges"][1:] + a["edges"][:-1]) / 2
    width = float(a["edges"][1] - a["edges"][0])
    for key in _keys(a, ".moments"):
        counts = a[f"{key}.counts"]
        ax.plot(middle, counts / (counts.sum() * width), drawstyle="steps-mid", label=key)
    ax.plot(middle, np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi), "k--", label="normal")
    ax.set(xlabel="dR/da_L, in its standard deviations", ylabel="density")
    ax.legend(fontsize="small")


# -- Figure 12 -------------------------------------------------------------------------------------

PAIRS = {  # (with identity, without), and the rule of paths for BatchNorm nets
    "simplified": ("simplified_residual_20", "simplified_plain_20", None),
    "full": ("full_residual_20", "full_plain_20", "truncate"),
}


def compute_figure_12(
    *,
    pair: str,
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    epochs: int = SHORT_EPOCHS,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute f_l of two nets: means and standard errors over samples, (layers, statistics)."""
    *names, rule = PAIRS[pair]
    nets = listed_nets(names, states, each, device, epochs=epochs)
    data = image_set(dataset, "train", samples, size)
    arrays: dict[str, np.ndarray] = {"samples": np.array(samples)}
    for kind, name in zip(("identity", "plain"), names, strict=True):
        for state in states:
            flows = rt.dominant_flows(nets[name, state], data, rule=rule)
            views = [flows.under(mode="sap", statistic=statistic) for statistic in STATISTICS]
            key = f"{kind}.{state}"
            arrays[f"{key}.mean"] = np.stack([v.mean.cpu() for v in views], 1)
            arrays[f"{key}.error"] = np.stack([v.standard_error.cpu() for v in views], 1)
            arrays[f"{key}.off_path"] = flows.off_path.mean(0).cpu().numpy()
    return arrays


def _curves(a: Arrays, state: str) -> tuple[np.ndarray, np.ndarray]:
    """f_l by the paper's statistic: net with identities, plain net."""
    return a[f"identity.{state}.mean"][:, 0], a[f"plain.{state}.mean"][:, 0]


def _states(a: Arrays) -> list[str]:
    return [key.split(".")[1] for key in _keys(a, ".mean") if key.startswith("identity")]


def judge_figure_12_simplified(a: Arrays) -> list[Verdict]:
    """Require residual above plain, most in deep layers, and both lowered by training."""
    verdicts = []
    for state in _states(a):
        own, plain = _curves(a, state)
        verdicts += [
            Verdict(
                f"{state}: mean of f over the layers, residual against plain",
                "residual > plain (paper: 1.24 times in early, 4.06 in late layers)",
                f"{own.mean():.3f} against {plain.mean():.3f}, {int(a['samples'])} samples; ratio "
                f"of the halves {_ratio(own, plain, 0, 2):.2f}, {_ratio(own, plain, 1, 2):.2f}",
                own.mean() > plain.mean(),
            ),
            Verdict(
                f"{state}: residual, last three layers against the first three",
                "greater (increases with the layer)",
                f"{own[-3:].mean():.3f} against {own[:3].mean():.3f}",
                own[-3:].mean() > own[:3].mean(),
            ),
        ]
    if "initial" in _states(a):
        own, plain = _curves(a, "initial")
        verdicts.append(
            Verdict(
                "initial: layers in which residual is above plain",
                "≥ 80 %",
                f"{int((own > plain).sum())} of {len(own)}",
                bool((own > plain).mean() >= 0.8),
            )
        )
    if len(_states(a)) == 2:
        means = np.array([[curve.mean() for curve in _curves(a, s)] for s in _states(a)]).T
        verdicts.append(
            Verdict(
                "mean of f over the layers decreases with training",
                "trained < initial, both nets",
                ", ".join(
                    f"{net} {before:.3f} to {after:.3f}"
                    for net, (before, after) in zip(("residual", "plain"), means, strict=True)
                ),
                all(after < before for before, after in means),
            )
        )
    return verdicts


def _ratio(own: np.ndarray, plain: np.ndarray, part: int, parts: int) -> float:
    """Ratio of the means of two nets over one of ``parts`` equal parts of the layers."""
    chosen = np.array_split(np.arange(len(own)), parts)[part]
    return float(own[chosen].mean() / plain[chosen].mean())


def judge_figure_12_deep(a: Arrays) -> list[Verdict]:
    """Require that with BatchNorm only deep layers differ."""
    verdicts = []
    for state in _states(a):
        own, plain = _curves(a, state)
        early, late = _ratio(own, plain, 0, 3), _ratio(own, plain, 2, 3)
        verdicts.append(
            Verdict(
                f"{state}: f with identities over f without, last third of the layers",
                "> 1, and more than in the first third (paper: 0.99 early, 3.07 deep)",
                f"{late:.2f}; first third {early:.2f}; {int(a['samples'])} samples",
                late > 1 and late > early,
            )
        )
    return verdicts


def draw_figure_12(figure: Figure, a: Arrays) -> None:
    """Plot f_l by layer: by the paper's statistic, and as a ratio of means."""
    states = _states(a)
    panels = figure.subplots(len(states), 2, squeeze=False)
    labels = {"identity": "with identities", "plain": "plain"}
    for row, state in zip(panels, states, strict=True):
        for column, (panel, title) in enumerate(
            zip(row, ("mean of ratios (paper)", "ratio of means"), strict=True)
        ):
            rt.plots.flow_curve(
                np.arange(len(a[f"plain.{state}.mean"])),
                {label: a[f"{net}.{state}.mean"][:, column] for net, label in labels.items()},
                errors={
                    label: a[f"{net}.{state}.error"][:, column] for net, label in labels.items()
                },
                xlabel="layer or block",
                ax=panel,
            )
            panel.set_title(f"{state}, {title}", fontsize="medium")


# -- the claims ------------------------------------------------------------------------------------

_SCALED = "nets trained for 15 epochs"
_QUICK_FLOWS = dict(
    states=["initial"], dataset="digits", samples=4, size=16,
    scaled="initial weights only, four digits of 16 x 16 pixels",
)  # fmt: skip


def _figure_12(pair: str, name: str, source: str, says: str, judge) -> Claim:
    both = dict(pair=pair, states=["initial", "trained"], dataset="cifar10", size=32)
    return Claim(
        id=f"noise_stability/{name}",
        source=source,
        says=says,
        settings={
            "quick": dict(pair=pair, **_QUICK_FLOWS),
            "short": dict(**both, samples=64, scaled=_SCALED),
            "paper": dict(**both, samples=128, epochs=FULL_EPOCHS),
        },
        compute=compute_figure_12,
        judge=judge,
        draw=draw_figure_12,
    )


CLAIMS = [
    Claim(
        id="noise_stability/figure_10",
        source=f"{PAPER}, Figure 10",
        says="The loss gradient in the final features is centred, roughly normal.",
        settings={
            "quick": dict(
                nets=["simplified_residual_20", "simplified_plain_20"], states=["initial"],
                dataset="digits", samples=100, size=16,
                scaled="initial weights only, 100 digits of 16 x 16 pixels",
            ),
            "short": dict(
                nets=["simplified_residual_20", "simplified_plain_20"],
                states=["initial", "trained"], dataset="cifar10", samples=1000, size=32,
                scaled=_SCALED,
            ),
            "paper": dict(
                nets=["simplified_residual_20", "simplified_plain_20"],
                states=["initial", "trained"], dataset="cifar10", samples=10_000, size=32,
                epochs=FULL_EPOCHS,
            ),
        },
        compute=compute_figure_10,
        judge=judge_figure_10,
        draw=draw_figure_10,
    ),
    _figure_12(
        "simplified",
        "figure_12_simplified",
        f"{PAPER}, Figure 12 (a)",
        "In simplified nets residual connections make more gradient flows dominant, most in deep "
        "layers, and training makes fewer.",
        judge_figure_12_simplified,
    ),
    _figure_12(
        "full",
        "figure_12_full",
        f"{PAPER}, Figure 12 (b)",
        "In nets with BatchNorm and two convolutions a block only deep layers have more dominant "
        "flows than plain nets.",
        judge_figure_12_deep,
    ),
]  # fmt: skip
