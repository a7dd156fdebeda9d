"""Verbs that measure trained nets and a user's own models: ``curvature`` and ``cushions``."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resid_theory.cli.output import Files, Json, Out, Overwrite, finish, say, shows_progress
from resid_theory.cli.sources import (
    Channels,
    Data,
    Device,
    Model,
    Size,
    StateDict,
    images,
    named_net,
    one_net,
    renamed,
    run_once,
)
from resid_theory.cli.verbs import options_of, with_defaults

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from resid_theory import Images
    from resid_theory.curvature.operator import CurvatureOperator
    from resid_theory.eigen import SpectrumReport
    from resid_theory.stability.sample_statistics import Summaries

Split = Annotated[str, typer.Option(help="train or test; of a named set.")]
Samples = Annotated[
    int | None,
    typer.Option(
        help="Images: the first of a set; of a folder, drawn by --seed. By default 500, or all of "
        "a smaller set."
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, help="Of all that is drawn: probes, images, weights of --model.")
]
_LARGE = 5000  # parameters; above, products are counted and timed before the run
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="File for the figure.")]


# -- curvature -------------------------------------------------------------------------------------


def curvature_options() -> list[inspect.Parameter]:
    """Options of the spectrum's measurement."""
    import resid_theory as rt

    leave = ("progress", "density", "loss")
    return options_of({"": rt.spectrum, "operator": rt.curvature_operator}, leave=leave)


def curvature(
    data: Data,
    checkpoint: Annotated[
        str | None, typer.Option(help="Name or path of a checkpoint, or an authors' file (.pt7).")
    ] = None,
    model: Model = None,
    state_dict: StateDict = None,
    split: Split = "train",
    samples: Samples = None,
    size: Size = None,
    channels: Channels = 3,
    loss: Annotated[
        str, typer.Option(help="cross_entropy or square (of one-hot targets).")
    ] = "cross_entropy",
    density: Annotated[
        bool, typer.Option("--density", help="Estimate density, index and condition number too.")
    ] = False,
    device: Device = "cpu",
    seed: Seed = 0,
    out: Out = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="File for the figure; implies --density."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder for the products, so that a killed matrix-free run goes on."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Measure the curvature of a trained net or of your own model: extremes, trace, density.

    Every number comes with its error bar. Before a long run its products are counted and timed.
    """
    import resid_theory as rt
    from resid_theory.runtime import store

    files = Files.of("curvature", out, plot, overwrite=overwrite)
    if folder is not None:
        store.make_folder("--folder", folder)
    flag = one_net(checkpoint, model)
    source = _Source(data, split, samples, size, channels, device, seed, state_dict)
    given = with_defaults(options, rt.spectrum, rt.curvature_operator)
    of_operator = inspect.signature(rt.curvature_operator).parameters
    net, found = source.load(checkpoint, model, as_json)
    with renamed(net=flag):
        operator = rt.curvature_operator(
            net,
            loss,
            _with_targets(net, found, loss),
            generator=seed,
            **{name: given[name] for name in given if name in of_operator},
        )
        density = density or plot is not None
        matrix_free = {"matrix-free": True, "dense": False}.get(
            str(options.get("method")), operator.shape[0] > _LARGE
        )
        if matrix_free and not as_json:
            say(_estimate(operator, given["k"], given["probes"], given["steps"] if density else 1))
        report = rt.spectrum(
            operator,
            density=density,
            generator=seed,
            folder=folder,
            progress=shows_progress(as_json),
            **{name: given[name] for name in given if name not in of_operator},
        )
    content = {"net": checkpoint or model, **asdict(source), "samples": len(found), "loss": loss}
    content |= given
    content |= _report_content(report)
    drawable, wrt = report.spectrum is not None or report.density is not None, given["wrt"]
    moved = {"parameters": "weight", "inputs": "input"}.get(wrt, f"output of {wrt}")
    unit = f"loss / {moved}²"
    said = files.save(content, (lambda: _density_figure(report, unit)) if drawable else None)
    words = f"{checkpoint or model} on {data}\n{report}\nEigenvalues in units of {unit}."
    finish(content, as_json, lambda: print(words), said)


def _estimate(operator: "CurvatureOperator", k: int, probes: int, steps: int) -> str:
    """Words on the products that a matrix-free run takes at least, their time and memory."""
    import torch

    from resid_theory._check import check_int
    from resid_theory.runtime.resources import clock, peak_bytes, readable_bytes

    for name, value in (("k", k), ("probes", probes), ("steps", steps)):
        check_int(name, value)
    vector = torch.ones(operator.shape[0], 1, dtype=operator.dtype, device=operator.device)
    for _ in range(2):  # the first product builds what the others use
        start = clock(operator.device)
        operator @ vector
        seconds = clock(operator.device) - start
    products = 2 * k + probes * steps
    return (
        f"P = {operator.shape[0]:,}, {seconds:.2g} s a product, "
        f"{readable_bytes(peak_bytes(operator.device))} used; at least {products:,} products, "
        f"{products * seconds / 60:,.1f} min."
    )


def _with_targets(net: "nn.Module", found: "Images", loss: str) -> "Images":
    """Labels as the loss takes them, such as one-hot targets for the square loss."""
    from resid_theory.losses import Loss

    targets, _ = Loss.of(loss).targets_of(run_once(net, found), found.labels)
    return replace(found, labels=targets)


def _report_content(report: "SpectrumReport") -> dict[str, Any]:
    def number(estimate: Any) -> Any:
        return None if estimate is None else asdict(estimate)

    seen = report.density
    density = None if seen is None else {
        "nodes": seen.nodes.tolist(), "weights": seen.weights.tolist(), "known": seen.known.tolist()
    }  # fmt: skip
    plain = ("method", "reason", "matrix", "parameters", "products")
    return {
        **{name: getattr(report, name) for name in plain},
        "largest": [asdict(end) for end in report.largest],
        "smallest": [asdict(end) for end in report.smallest],
        "trace": number(report.trace),
        "frobenius_norm": number(report.frobenius_norm),
        "index": number(report.index),
        "index_threshold": report.index_threshold,
        "condition_number": number(report.condition_number),
        "percentile": report.percentile,
        "density": density,
        "notes": list(report.notes),
    }


def _density_figure(report: "SpectrumReport", unit: str) -> "Figure":
    from resid_theory import plots

    drawing = plots.figure(1, 2, panel=(6.4, 3.9))
    for ax, scale in zip(drawing.axes, ("linear", "symlog"), strict=True):
        plots.spectral_density(report, scale=scale, unit=unit, ax=ax)
    return drawing


# -- cushions --------------------------------------------------------------------------------------


def cushion_options() -> list[inspect.Parameter]:
    """Options of the cushions' measurement."""
    import resid_theory as rt

    measures: dict[str, Any] = {"layers": rt.layer_cushions, "blocks": rt.stability.block_cushions}
    return options_of(measures, leave=("progress",))


def cushions(
    data: Data,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Name or path of a checkpoint, or an authors' file; repeat for more."),
    ] = None,
    model: Model = None,
    state_dict: StateDict = None,
    split: Split = "train",
    samples: Samples = None,
    size: Size = None,
    channels: Channels = 3,
    layers: Annotated[
        str | None, typer.Option(help="Names of the layers to measure, as in a,b; all by default.")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Interlayer cushions of whole modules instead of layers: their names, as in a,b; "
            "or all, for block1, block2, ... of this library's networks."
        ),
    ] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    out: Out = None,
    plot: Plot = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Measure the noise stability of trained nets or of your own model: cushions, layer by layer.

    Prints a table for each net and draws violins over the samples, several nets side by side.
    """
    import resid_theory as rt

    files = Files.of("cushions", out, plot, overwrite=overwrite)
    if layers is not None and blocks is not None:
        raise ValueError("--layers: got it together with --blocks, needs one of them")
    flag = one_net(checkpoint, model)
    source = _Source(data, split, samples, size, channels, device, seed, state_dict)
    measure: Any = rt.layer_cushions if blocks is None else rt.stability.block_cushions
    given = _settings_of(measure, options, "layers" if blocks is None else "blocks")
    keywords: dict[str, Any] = {**given, "progress": shows_progress(as_json)}
    if blocks is not None:
        keywords |= {"blocks": None if blocks == "all" else blocks.split(","), "generator": seed}
    if layers is not None:
        keywords["layers"] = layers.split(",")
    measured: dict[str, Summaries] = {}
    for name in dict.fromkeys([model] if model else checkpoint or []):
        net, found = source.load(name, model, as_json)
        with renamed(net=flag):
            measured[str(name)] = measure(net, found, **keywords)
    content = {**asdict(source), "samples": len(found), **given, "layers": layers, "blocks": blocks}
    content["nets"] = {name: _cushion_content(found) for name, found in measured.items()}
    said = files.save(content, lambda: _violins(measured))
    tables = [f"{name} on {data}: {found}" for name, found in measured.items()]
    finish(content, as_json, lambda: print("\n\n".join(tables)), said)


def _settings_of(measure: Any, options: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The options that a measurement has; an error for one of the other kind of cushions."""
    from resid_theory.sweep.config import arguments_of

    own = arguments_of(measure)
    for name, value in options.items():
        if value is not None and name not in own:
            raise ValueError(
                f"--{name.replace('_', '-')}: got {value!r} for cushions of {kind}, which do not "
                f"have it; needs {'--blocks' if kind == 'layers' else 'no --blocks'}"
            )
    return with_defaults({name: options[name] for name in options if name in own}, measure)


def _cushion_content(found: "Summaries") -> dict[str, Any]:
    """Summaries by layer; for layers, under both conventions for an identity inside a weight."""
    from resid_theory.stability.cushions import WEIGHTS, Cushions

    if not isinstance(found, Cushions):
        return {"layers": found.frame().set_index("layer").to_dict("index")}
    tables = {
        name: found.under(name).frame().set_index("layer").to_dict("index") for name in WEIGHTS
    }
    layers = {row: {name: table[row] for name, table in tables.items()} for row in found.rows}
    return {"layers": layers, "not_covered": dict(found.not_covered)}


def _violins(measured: "Mapping[str, Summaries]") -> "Figure":
    from resid_theory import plots

    rows = max(len(found.rows) for found in measured.values())
    drawing = plots.figure(panel=(max(6.4, 0.25 * rows * len(measured)), 4.8))
    plots.cushion_violins(measured, ax=drawing.axes[0])
    return drawing


# -- both ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """The images and the device, by the names of the options."""

    data: str
    split: str
    samples: int | None
    size: int | None
    channels: int
    device: str
    seed: int
    state_dict: Path | None

    def load(
        self, checkpoint: str | None, model: str | None, as_json: bool
    ) -> "tuple[nn.Module, Images]":
        """The net and images that it accepts, on the device."""
        from resid_theory.runtime.resources import check_device

        device = check_device("device", self.device)
        net = named_net(checkpoint, model, self.seed, self.state_dict)
        read = partial(
            images, self.data, split=self.split, size=self.size, channels=self.channels,
            seed=self.seed, progress=not as_json,
        )  # fmt: skip
        try:
            found = read(samples=500 if self.samples is None else self.samples)
        except ValueError:
            if self.samples is not None:
                raise
            found = read()  # a smaller set, or the same error
        run_once(net.to(device), found)
        return net, found.to(device)
