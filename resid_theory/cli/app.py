"""The command line: thin verbs over library calls, and errors of one line.

Only typer is imported at the top: ``--help`` answers at once, torch waits for the work.
"""

import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resid_theory.cli import dirac, nets, sweeps, trainings
from resid_theory.cli.output import Json, folder, number, print_json, say, shows_progress, write
from resid_theory.comparison import Run, Setup, measure, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resid_theory import Regression, Spectrum
    from resid_theory.curvature import HessianCost
    from resid_theory.theory import ZeroPointReport

__all__ = ["main"]

app = typer.Typer(
    cls=nets.Verbs,
    add_completion=False,
    no_args_is_help=True,
    help="Identity and shortcut nets: curvature and noise stability, predicted and measured.",
)


def _say_version(asked: bool) -> None:
    if asked:
        import resid_theory

        typer.echo(f"resid_theory {resid_theory.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    """What stands in front of a verb."""


_WORDS = {
    "max_magnitude": "largest |λ|",
    "largest": "largest λ",
    "smallest": "smallest λ",
    "magnitude_percentile_10": "10th percentile of |λ|",
    "condition_number": "max |λ| / min |λ|",
    "condition_number_10": "max |λ| / 10th percentile",
    "condition_number_nonzero": "max |λ| / smallest nonzero |λ|",
    "index": "index (share of λ < 0)",
    "nullity": "zero eigenvalues",
    "distance": "distance from prediction",
    "growth_rate": "κ, limit of max |λ| / blocks",
    "bulk_percentile_10": "limit of the 10th percentile",
    "a_priori_bound": "a-priori bound on max / min",
    "learning_rate_scale": "learning-rate scale, 1 / max |λ|",
    "escape_time": "weights of 0.01 grow to 0.1 in lr × steps",
    "escape_steps": "the same in steps at that learning rate",
}
_ONE_THREAD = 2000  # parameters; above, threads make eigenvalues faster

Data = Annotated[str, typer.Option(help="To whiten: digits, mnist, or an .npz of arrays x, y.")]
Components = Annotated[int, typer.Option(help="Principal components kept, the net's width d.")]
Blocks = Annotated[int, typer.Option(help="Number of blocks R.")]
ShortcutDepth = Annotated[int, typer.Option(help="Weight layers n under one shortcut.")]
Hidden = Annotated[int | None, typer.Option(help="Width inside a block; d by default.")]
Bias = Annotated[bool, typer.Option("--bias", help="Give each block's first layer a bias.")]
Pre = Annotated[str | None, typer.Option(help="Activation before a block: relu, tanh, ...")]
Mid = Annotated[str | None, typer.Option(help="Activation between the layers of a block.")]
Post = Annotated[str | None, typer.Option(help="Activation after a block's last layer.")]
LossName = Annotated[str, typer.Option(help="square or cross_entropy; a mean over samples.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the numbers (JSON) and the figure.")]


# -- verbs -----------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for figure and numbers.")] = Path(
        "resid_theory_demo"
    ),
    blocks: Annotated[str, typer.Option(help="Numbers of blocks of two layers.")] = "2,4,8",
    as_json: Json = False,
) -> None:
    """Predict the Hessian of 2-shortcut and plain nets on the embedded digits, then measure it."""
    started, depths = time.perf_counter(), _whole_numbers("blocks", blocks, 1)
    data = Setup().load(progress=False)
    folder(out)
    cases = [(net, replace(setup, blocks=r)) for net, setup in _DEMO.items() for r in depths]
    runs: dict[str, list[Run]] = {net: [] for net in _DEMO}
    with _threads_for(0):
        for net, setup in _bar(cases, as_json, "nets"):
            runs[net].append(measure(setup, data, 0))
    content = {
        "data": "digits",
        "components": 10,
        "nets": {net: [run.content() for run in found] for net, found in runs.items()},
    }
    paths = write(out, "demo", content, _demo_figure(runs, data))
    if as_json:
        print_json(content)
        return
    _demo_tables(runs)
    say(f"{paths} written in {time.perf_counter() - started:.1f} s.")


@app.command()
def spectrum(
    ctx: typer.Context,
    data: Data = "digits",
    components: Components = 10,
    blocks: Blocks = 4,
    shortcut_depth: ShortcutDepth = 2,
    plain: Annotated[bool, typer.Option("--plain", help="Leave the shortcuts out.")] = False,
    hidden: Hidden = None,
    bias: Bias = False,
    pre: Pre = None,
    mid: Mid = None,
    post: Post = None,
    init: Annotated[
        str, typer.Option(help="xavier, orthogonal, kaiming, zero or near_zero.")
    ] = "near_zero",
    scale: Annotated[float, typer.Option(help="Factor of near_zero on Xavier weights.")] = 0.01,
    seeds: Annotated[str, typer.Option(help="How many (3), or which (0,1,2).")] = "1",
    loss: LossName = "square",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure all eigenvalues of the Hessian, beside the prediction where there is one.

    With --checkpoint or --model: of a trained net or one of your own; options: curvature --help.
    """
    _spectrum(Setup.of(ctx.params), _seeds(seeds), out, as_json)


@app.command()
def zero_point(
    ctx: typer.Context,
    data: Data = "digits",
    components: Components = 10,
    blocks: Blocks = 4,
    shortcut_depth: ShortcutDepth = 2,
    hidden: Hidden = None,
    bias: Bias = False,
    pre: Pre = None,
    mid: Mid = None,
    post: Post = None,
    loss: LossName = "square",
    exact: Annotated[
        bool, typer.Option("--exact", help="n = 1: count eigenvalues at any depth; slow.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Predict the Hessian at zero weights, at any depth, and the escape; nothing is measured."""
    _zero_point(Setup.of({**ctx.params, "init": "zero"}), exact, out, as_json)


dirac.register(app)
nets.register(app)
trainings.register(app)
sweeps.register(app)

# -- demo ------------------------------------------------------------------------------------------

_DEMO = {
    "2-shortcut, at zero": Setup(init="zero"),
    "2-shortcut, near zero": Setup(init="near_zero"),
    "orthogonal, plain": Setup(init="orthogonal", plain=True),
    "Xavier, plain": Setup(init="xavier", plain=True),
}


def _demo_tables(runs: Mapping[str, Sequence[Run]]) -> None:
    from rich.table import Table

    say("Exact Hessians of linear nets on whitened digits, predicted and measured", style="bold")
    for net, found in runs.items():
        bound = found[0].bound
        known = "" if bound is None else f"; a-priori bound on max/min: {bound:.3f}"
        table = Table(title=net + known, title_justify="left", box=None, pad_edge=False)
        for column in ("layers", "P", "", *_DEMO_COLUMNS, "distance"):
            table.add_column(column, justify="left" if column == "" else "right")
        for run in found:
            if run.predicted is not None:
                table.add_row("", "", "predicted", *_demo_cells(run.predicted), "")
            far = "" if run.distance is None else f"{run.distance:.1e}"
            size = [str(run.layers), str(run.measured.size)]
            table.add_row(*size, "measured", *_demo_cells(run.measured), far)
        say("")
        say(table)
    say("\nλ in units of loss / weight²; distance: between the two spectra, over the largest |λ|.")


_DEMO_COLUMNS = {
    "max |λ|": "max_magnitude",
    "10th pct": "magnitude_percentile_10",
    "max/min": "condition_number",
    "max/10th": "condition_number_10",
    "index": "index",
}


def _demo_cells(spectrum: "Spectrum") -> list[str]:
    found = numbers(spectrum)
    return [number(found[key]) for key in _DEMO_COLUMNS.values()]


def _demo_figure(runs: Mapping[str, Sequence[Run]], data: "Regression") -> "Figure":
    from resid_theory import plots

    drawing = plots.figure(2, 3)
    trends = {net: found for net, found in runs.items() if net != "2-shortcut, at zero"}
    for ax, key in zip(drawing.axes[::3], ("condition_number_10", "max_magnitude"), strict=True):
        _draw_trend(trends, key, ax)
    for column, net in enumerate(("2-shortcut, near zero", "orthogonal, plain"), start=1):
        run = runs[net][len(runs[net]) // 2]
        title = f"{net}, {run.layers} layers"
        plots.spectrum(run.measured, predicted=run.predicted, ax=drawing.axes[column])
        drawing.axes[column].set_title(title)
        _draw_pattern(run, data, drawing.axes[3 + column], f"Hessian: {title}")
    return drawing


def _draw_trend(runs: Mapping[str, Sequence[Run]], key: str, ax: Any) -> None:
    from resid_theory import plots

    contents = {net: [run.content() for run in found] for net, found in runs.items()}
    measured = {net: [run["measured"][key] for run in of] for net, of in contents.items()}
    predicted = {
        net: [run["predicted"][key] for run in of]
        for net, of in contents.items()
        if all(run["predicted"] for run in of)
    }
    layers = [run["layers"] for run in next(iter(contents.values()))]
    unit = " (loss / weight²)" if key == "max_magnitude" else ""
    plots.by_depth(layers, measured, predicted=predicted, ylabel=_WORDS[key] + unit, ax=ax)


def _draw_pattern(run: Run, data: "Regression", ax: Any, title: str) -> None:
    import resid_theory as rt

    net = run.setup.net(run.seed)
    order = net.definition5_order()
    matrix = rt.hessian(net, run.setup.loss, data)[order][:, order]
    rt.plots.hessian_pattern(matrix, block=len(order) // net.blocks, title=title, ax=ax)


# -- spectrum --------------------------------------------------------------------------------------


def _spectrum(setup: Setup, seeds: Sequence[int], out: Path | None, as_json: bool) -> None:
    import resid_theory as rt

    shows = shows_progress(as_json)
    data = setup.load(progress=shows)
    if out is not None:
        folder(out)
    cost = _cost(rt.hessian_cost(setup.net(seeds[0]), setup.loss, data))
    if not as_json:
        _say_cost(cost, len(seeds))
    with _threads_for(cost["parameters"]):
        bar = _bar(seeds, as_json, "seeds")
        runs = [measure(setup, data, seed, progress=shows) for seed in bar]
    content = {"setup": asdict(setup), "cost": cost, **_summary(runs)}
    paths = "" if out is None else write(out, "spectrum", content, _spectrum_figure(runs))
    if as_json:
        print_json(content)
        return
    _spectrum_table(content)
    if paths:
        say(f"{paths} written.")


def _cost(cost: "HessianCost") -> dict[str, Any]:
    """The price of one seed, the eigenvalues included."""
    import torch

    probe, seconds = torch.eye(400, dtype=torch.float64) + 0.01, math.inf
    with _threads_for(len(probe)):
        for _ in range(4):  # the first call starts LAPACK, which takes longer than the work
            started = time.perf_counter()
            torch.linalg.eigvalsh(probe)
            seconds = min(seconds, time.perf_counter() - started)
    return {
        "method": cost.method,
        "parameters": cost.parameters,
        # LAPACK works on a copy, and needs about as much again.
        "bytes": max(cost.bytes, 24 * cost.parameters**2),
        "seconds": cost.seconds + seconds * (cost.parameters / 400) ** 3,
    }


def _say_cost(cost: Mapping[str, Any], seeds: int) -> None:
    memory = f"{cost['bytes'] / 2**20:,.1f} MiB"
    seconds = f"about {cost['seconds']:.2g} s a seed, {seeds} seed{'s' * (seeds > 1)}"
    say(f"P = {cost['parameters']:,}, method {cost['method']}, {memory}, {seconds}")


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    """What a list of runs comes to: each one, their mean and their spread."""
    measured = [numbers(run.measured) for run in runs]
    predicted = [numbers(run.predicted) for run in runs if run.predicted is not None]
    if predicted:
        measured = [n | {"distance": r.distance} for n, r in zip(measured, runs, strict=True)]
    return {
        "note": runs[0].note,
        "runs": [run.content() for run in runs],
        "mean": _over(fmean, measured),
        "standard_deviation": _over(_spread, measured),
        "predicted_mean": _over(fmean, predicted) if predicted else None,
    }


def _over(reduce: Any, rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {key: reduce([row[key] for row in rows]) for key in rows[0]}


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation between seeds (n - 1); None for one seed or an infinite value."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def _spectrum_table(content: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "measured", "± sd", "predicted"):
        table.add_column(column, justify="right" if column else "left")
    mean, spread, predicted = (
        content[key] or {} for key in ("mean", "standard_deviation", "predicted_mean")
    )
    for key, words in _WORDS.items():
        if key in mean:
            table.add_row(words, *(number(column.get(key)) for column in (mean, spread, predicted)))
    bound = content["runs"][0]["a_priori_bound"]
    if bound is not None:
        table.add_row(_WORDS["a_priori_bound"], "", "", number(bound))
    say(table)
    say(content["note"])


def _spectrum_figure(runs: Sequence[Run]) -> "Figure":
    from resid_theory import plots

    drawing = plots.figure(panel=(6.4, 4.8))
    (ax,) = drawing.axes
    for place, run in enumerate(runs[1:]):
        label = "_" if place else "other seeds"  # matplotlib's sign for no entry in the legend
        plots.spectrum(run.measured, label=label, color="0.75", ax=ax)
    first = runs[0]
    label = f"measured, seed {first.seed}"
    plots.spectrum(first.measured, predicted=first.predicted, label=label, ax=ax)
    return drawing


# -- zero-point ------------------------------------------------------------------------------------


def _zero_point(setup: Setup, exact: bool, out: Path | None, as_json: bool) -> None:
    data = setup.load(progress=shows_progress(as_json))
    if out is not None:
        folder(out)
    from resid_theory.theory import ZeroPointReport

    report = ZeroPointReport(point=setup.zero_point(data), exact=exact)
    # Limits and counts are many small problems, whatever the depth.
    with _threads_for(report.point.size if report.is_dense else 0):
        content = {"setup": asdict(setup), **report.summary()}
        paths = "" if out is None else write(out, "zero_point", content, _report_figure(report))
    if as_json:
        print_json(content)
        return
    _zero_point_table(content)
    if paths:
        say(f"{paths} written.")


def _zero_point_table(content: Mapping[str, Any]) -> None:
    from rich.table import Column, Table

    say(f"{content['verdict']}: {content['reason']}")
    say(f"P = {content['parameters']:,}, by {content['method']}")
    table = Table("", Column(justify="right"), box=None, pad_edge=False, show_header=False)
    for key, words in _WORDS.items():
        if content.get(key) is not None:
            table.add_row(words, number(content[key]))
    say(table)


def _report_figure(report: "ZeroPointReport") -> "Figure | None":
    from resid_theory import plots

    return None if report.spectrum is None else plots.zero_point(report)


# -- words -----------------------------------------------------------------------------------------


def _whole_numbers(argument: str, text: str, minimum: int) -> list[int]:
    from resid_theory._check import whole

    try:
        found = [int(part) for part in text.rstrip(",").split(",")]
    except ValueError:
        raise ValueError(f"{argument}: got {text!r}, needs whole numbers such as 2,4,8") from None
    return [whole(argument, value, minimum) for value in found]


def _seeds(text: str) -> list[int]:
    """``3`` is three seeds, ``0,1,2`` are these, ``7,`` is the seed 7."""
    if "," not in text:
        return list(range(*_whole_numbers("seeds", text, 1)))
    seeds = _whole_numbers("seeds", text, 0)
    if max(seeds) >= 1 << 63:
        raise ValueError(f"seeds: got {max(seeds)}, needs numbers below 2^63")
    return seeds


def _bar(items: Sequence[Any], as_json: bool, unit: str) -> Iterable[Any]:
    from tqdm import tqdm

    hidden = as_json or len(items) == 1 or not sys.stderr.isatty()
    return tqdm(items, unit=unit, leave=False, disable=hidden)


@contextmanager
def _threads_for(size: int) -> Iterator[None]:
    """One thread for small eigenproblems: more gain nothing, and wait where others compute too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if size > _ONE_THREAD else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- errors ----------------------------------------------------------------------------------------

# click's own, which typer either imports or, in later versions, carries inside.
_UsageError: Any = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; an error is one line on standard error.

    Args:
        arguments: Words after the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 after an error, 130 after an interrupt.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="resid-theory", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:  # `| head`: nobody reads on, and flushing at exit would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _UsageError as error:
        return _fail(error.format_message() + _given(error, arguments), 2)
    except (ArithmeticError, ValueError, OSError, MemoryError) as error:
        return _fail(_named(str(error) or type(error).__name__), 2)
    # Later versions of typer turn an interrupt into this code themselves.
    return _fail("interrupted", code) if code == 130 else int(code or 0)


def _given(error: Any, words: Sequence[str] | None) -> str:
    """What stood behind the option that an error is about; click names the option alone."""
    words = list(sys.argv[1:] if words is None else words)
    names = getattr(getattr(error, "param", None), "opts", [])
    for word, behind in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if isinstance(error, typer.BadParameter) and name in names:
            return f" (got {value if equals else behind!r})"
    return ""


def _fail(message: str, code: int) -> int:
    print("resid-theory: " + " ".join(message.split()), file=sys.stderr)
    return code


def _named(message: str) -> str:
    """A message that begins with an argument's name, with the option's name instead."""
    options = {f.name for f in fields(Setup)} | {"seeds", "out"}
    found = re.match(r"([a-z_]+): ", message)
    if found is None or found[1] not in options:
        return message
    return f"--{found[1].replace('_', '-')}{message[found.end(1) :]}"
