"""Verbs that measure trained nets and models of one's own: ``curvature`` and ``cushions``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from resid_theory.cli.output import Json, folder, print_json, say, shows_progress, write
from resid_theory.cli.sources import (
    checkpoint_net,
    device_of,
    images,
    model_net,
    options,
    run_once,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from resid_theory import Images
    from resid_theory.eigen import SpectrumReport
    from resid_theory.stability.sample_statistics import Summaries

__all__ = ["Verbs", "register"]

_NET = ("--checkpoint", "--model")
_WORDS = ("batchnorm", "density", "k", "loss", "matrix", "norm", "percentile", "weight")

Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:CALLABLE",
        help="A net of your own: imports MODULE from the current directory and calls CALLABLE(), "
        "which returns a torch.nn.Module. This runs the code of that file.",
    ),
]
Data = Annotated[
    str, typer.Option(help="cifar10, mnist, digits, or a folder with one folder a class.")
]
Split = Annotated[str, typer.Option(help="train or test; of a named set.")]
Samples = Annotated[
    int, typer.Option(help="Images: the first so many; of a folder, drawn by --seed.")
]
Size = Annotated[
    int | None, typer.Option(help="Side of the images; 32, of a folder 224 by default.")
]
Channels = Annotated[int, typer.Option(help="Of the images of a named set; grey is repeated.")]
BatchNorm = Annotated[str, typer.Option(help="Statistics: eval (running) or batch.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option(min=0, help="Of every draw: probes, images, your own weights.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the numbers (JSON) and the figure.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="File for the figure.")]


class Verbs(TyperGroup):
    """The verbs; ``spectrum`` of a trained net is the verb ``curvature``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Choose the verb.

        Args:
            ctx: The call.
            args: Its words, the verb's name first.

        Returns:
            What the base class returns: the verb's name, the verb, and the words behind it.
        """
        if args[0] == "spectrum" and any(word.partition("=")[0] in _NET for word in args[1:]):
            args = ["curvature", *args[1:]]
        return super().resolve_command(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line.

    Args:
        app: The program.
    """
    app.command()(curvature)
    app.command()(cushions)


# -- curvature -------------------------------------------------------------------------------------


def curvature(
    data: Data,
    checkpoint: Annotated[
        str | None, typer.Option(help="Name or path of a checkpoint, or an authors' file (.pt7).")
    ] = None,
    model: Model = None,
    split: Split = "train",
    samples: Samples = 500,
    size: Size = None,
    channels: Channels = 3,
    k: Annotated[int, typer.Option(help="Eigenvalues at each end.")] = 5,
    density: Annotated[
        bool, typer.Option("--density", help="Estimate density, index and condition number too.")
    ] = False,
    matrix: Annotated[
        str, typer.Option(help="Curvature matrix; a wrong name lists all of them.")
    ] = "hessian",
    loss: Annotated[
        str, typer.Option(help="cross_entropy or square (of one-hot targets).")
    ] = "cross_entropy",
    batchnorm: BatchNorm = "eval",
    device: Device = "cpu",
    seed: Seed = 0,
    out: Out = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="File for the figure; asks for --density."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the curvature of a trained net or a model of your own: extremes, trace, density.

    The same as spectrum with --checkpoint or --model. Every number comes with its error bar.
    """
    import torch

    import resid_theory as rt

    files = _Files.of("spectrum", out, plot)
    flag = _one_net(checkpoint, model)
    source = _Source(data, split, samples, size, channels, device, seed)
    net, found = source.load(checkpoint, model, as_json)
    with options(_WORDS, net=flag, data="--data"):
        report = rt.spectrum(
            rt.curvature_operator(
                net, loss, _with_targets(net, found, loss), matrix=matrix, batchnorm=batchnorm
            ),
            k=k,
            density=density or plot is not None,
            generator=torch.Generator().manual_seed(seed),
            progress=shows_progress(as_json),
        )
    content = {"net": checkpoint or model, **asdict(source), "loss": loss, "batchnorm": batchnorm}
    content |= _report_content(report)
    drawable = report.spectrum is not None or report.density is not None
    said = files.save(content, _density_figure(report) if drawable and files else None)
    words = f"{checkpoint or model} on {data}\n{report}\nEigenvalues in units of loss / weight²."
    _finish(content, words, said, as_json)


def _with_targets(net: "nn.Module", found: "Images", loss: str) -> "Images":
    """Labels for the cross-entropy, one-hot targets for the square loss."""
    from resid_theory.data import one_hot

    if loss != "square":
        return found
    output = run_once(net, found)
    return replace(found, labels=one_hot(found.labels, output.shape[1]).to(output.dtype))


def _report_content(report: "SpectrumReport") -> dict[str, Any]:
    def number(estimate: Any) -> Any:
        return None if estimate is None else asdict(estimate)

    return {
        "method": report.method,
        "reason": report.reason,
        "matrix": report.matrix,
        "parameters": report.parameters,
        "products": report.products,
        "largest": [asdict(end) for end in report.largest],
        "smallest": [asdict(end) for end in report.smallest],
        "trace": number(report.trace),
        "frobenius_norm": number(report.frobenius_norm),
        "index": number(report.index),
        "index_threshold": report.index_threshold,
        "condition_number": number(report.condition_number),
        "percentile": report.percentile,
        "density": _density_content(report),
        "notes": list(report.notes),
    }


def _density_content(report: "SpectrumReport") -> dict[str, Any] | None:
    """What the probes saw: each one's places and weights, and the eigenvalues known apart."""
    seen = report.density
    if seen is None:
        return None
    parts = {"nodes": seen.nodes, "weights": seen.weights, "known": seen.known}
    return {key: value.tolist() for key, value in parts.items()}


def _density_figure(report: "SpectrumReport") -> "Figure":
    from resid_theory import plots

    drawing = plots.figure(1, 2, panel=(6.4, 3.9))
    for ax, scale in zip(drawing.axes, ("linear", "symlog"), strict=True):
        plots.spectral_density(report, scale=scale, ax=ax)
    return drawing


# -- cushions --------------------------------------------------------------------------------------


def cushions(
    data: Data,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Name or path of a checkpoint, or an authors' file; again for more."),
    ] = None,
    model: Model = None,
    split: Split = "train",
    samples: Samples = 500,
    size: Size = None,
    channels: Channels = 3,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Interlayer cushions of whole modules instead of layers: their names, as in a,b; "
            "or all, for block1, block2, ... of this library's trunks."
        ),
    ] = None,
    norm: Annotated[
        str, typer.Option(help="Norm of the weight in the denominator, such as kernel or operator.")
    ] = "kernel",
    weight: Annotated[
        str, typer.Option(help="Weight in the denominator: identity_removed or effective.")
    ] = "identity_removed",
    batchnorm: BatchNorm = "eval",
    device: Device = "cpu",
    seed: Seed = 0,
    out: Out = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure the noise stability of trained nets or a model of your own: cushions, layer by layer.

    A table of each net, and violins over the samples, several nets side by side.
    """
    files = _Files.of("cushions", out, plot)
    flag = _one_net(checkpoint, model)
    source = _Source(data, split, samples, size, channels, device, seed)
    how = {"norm": norm, "weight": weight, "batchnorm": batchnorm}
    measured: dict[str, Summaries] = {}
    for name in dict.fromkeys(checkpoint or [None]):  # type: ignore[list-item]
        net, found = source.load(name, model, as_json)
        with options(_WORDS, net=flag, data="--data", blocks="--blocks"):
            label = str(name or model)
            measured[label] = _measured(net, found, blocks, how, seed, shows_progress(as_json))
    content = {**asdict(source), **how, "blocks": blocks}
    content["nets"] = {name: _cushion_content(found) for name, found in measured.items()}
    said = files.save(content, _violins(measured) if files else None)
    tables = [f"{name} on {data}: {found}" for name, found in measured.items()]
    _finish(content, "\n\n".join(tables), said, as_json)


def _measured(
    net: "nn.Module",
    found: "Images",
    blocks: str | None,
    how: Mapping[str, str],
    seed: int,
    progress: bool,
) -> "Summaries":
    import resid_theory as rt

    if blocks is None:
        return rt.layer_cushions(net, found, **how, progress=progress)  # type: ignore[arg-type]
    names = None if blocks == "all" else blocks.split(",")
    keywords: dict[str, Any] = {"batchnorm": how["batchnorm"], "progress": progress}
    return rt.stability.block_cushions(net, found, blocks=names, generator=seed, **keywords)


def _cushion_content(found: "Summaries") -> dict[str, Any]:
    """Summaries by layer; of layers under both conventions for an identity inside a weight."""
    from resid_theory.stability.cushions import WEIGHTS, Cushions

    if not isinstance(found, Cushions):
        return {"layers": found.frame().to_dict("index")}
    tables = {name: found.under(name).frame().to_dict("index") for name in WEIGHTS}
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
    """The images and the machine, by the names of the options."""

    data: str
    split: str
    samples: int
    size: int | None
    channels: int
    device: str
    seed: int

    def load(
        self, checkpoint: str | None, model: str | None, as_json: bool
    ) -> "tuple[nn.Module, Images]":
        """The net, on its device, and images that it takes."""
        device = device_of(self.device)
        net = model_net(model, self.seed) if model else checkpoint_net(str(checkpoint))
        found = images(
            self.data,
            split=self.split,
            samples=self.samples,
            size=self.size,
            channels=self.channels,
            seed=self.seed,
            progress=not as_json,
        )
        run_once(net.to(device), found)
        return net, found.to(device)


def _one_net(checkpoint: Sequence[str] | str | None, model: str | None) -> str:
    """The option that names the net."""
    if bool(checkpoint) == bool(model):
        given = "both" if model else "neither"
        raise ValueError(f"--checkpoint, --model: got {given}, needs one of them")
    return "--model" if model else "--checkpoint"


@dataclass(frozen=True)
class _Files:
    """Where numbers and figure go."""

    name: str
    out: Path | None
    plot: Path | None

    @classmethod
    def of(cls, name: str, out: Path | None, plot: Path | None) -> "_Files":
        """The files, refused before the work where they cannot be written."""
        if plot is not None and plot.suffix != ".png":
            raise ValueError(f"--plot: got {str(plot)!r}, needs a name ending in .png")
        for place in filter(None, (out, plot and plot.parent)):
            folder(place)
        return cls(name, out, plot)

    def __bool__(self) -> bool:
        return self.out is not None or self.plot is not None

    def save(self, content: Any, drawing: "Figure | None") -> str:
        """Write what was asked for; returns the names of the files."""
        from resid_theory import plots
        from resid_theory.runtime import store

        written = []
        if self.out is not None:
            written.append(write(self.out, self.name, content, None))
        if drawing is not None:
            picture = plots.png(drawing)  # once: a layout settles by drawing, and moves a little
            beside = self.out and self.out / f"{self.name}.png"
            for place in filter(None, (beside, self.plot)):
                store.write_bytes(place, picture)
                written.append(str(place))
        return " and ".join(written)


def _finish(content: Any, words: str, files: str, as_json: bool) -> None:
    if as_json:
        print_json(content)
        return
    print(words)  # as it is: rich would wrap the rows of a wide table
    if files:
        say(f"{files} written.")
