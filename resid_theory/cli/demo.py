"""The demonstration: Hessians of n-shortcut and plain nets on the embedded digits."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resid_theory.cli.comparison import PredictionCheck, measure, numbers
from resid_theory.cli.output import Files, Json, bar, finish, number, say, say_table, whole_numbers
from resid_theory.cli.shortcut_commands import WORDS, threads_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resid_theory import Regression, Spectrum


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for figure and numbers; those there are replaced.")
    ] = Path("resid_theory_demo"),
    blocks: Annotated[str, typer.Option(help="Numbers of blocks of two layers.")] = "2,4,8",
    as_json: Json = False,
) -> None:
    """Predict the Hessian of 2-shortcut and plain nets on the embedded digits, then measure it."""
    from resid_theory.sweep.setup import Setup

    started, depths = time.perf_counter(), whole_numbers("blocks", blocks, 1)
    files = Files.of("demo", out, None, overwrite=True)
    setups = {
        "2-shortcut, at zero": Setup(init="zero"),
        "2-shortcut, near zero": Setup(init="near_zero"),
        "orthogonal, plain": Setup(init="orthogonal", plain=True),
        "Xavier, plain": Setup(init="xavier", plain=True),
    }
    data = Setup().load(progress=False)
    cases = [(net, replace(setup, blocks=r)) for net, setup in setups.items() for r in depths]
    runs: dict[str, list[PredictionCheck]] = {net: [] for net in setups}
    with threads_for(0):
        for net, setup in bar(cases, as_json, "nets"):
            runs[net].append(measure(setup, data, 0, progress=False))
    content = {
        "data": "digits",
        "components": 10,
        "nets": {net: [run.content() for run in found] for net, found in runs.items()},
    }
    written = files.save(content, lambda: _figure(runs, data))
    took = f"{written.removesuffix('.')} in {time.perf_counter() - started:.1f} s."
    finish(content, as_json, lambda: _tables(runs), took)


def _tables(runs: Mapping[str, Sequence[PredictionCheck]]) -> None:
    say("Exact Hessians of linear nets on whitened digits, predicted and measured")
    for net, found in runs.items():
        first = found[0]
        known = "" if first.bound is None else f"; a-priori bound on max/min: {first.bound:.3f}"
        rows = [["layers", "P", "", *_COLUMNS, "distance"]]
        for run in found:
            if run.predicted is not None:
                rows.append(["", "", "predicted", *_cells(run.predicted), ""])
            far = "" if run.distance is None else f"{run.distance:.1e}"
            size = [str(run.layers), str(run.measured.size)]
            rows.append([*size, "measured", *_cells(run.measured), far])
        say(f"\n{net}{known}")
        say_table(">><>>>>>>", rows)
    say("\nλ in units of loss / weight²; distance: between the two spectra, over the largest |λ|.")


_COLUMNS = {
    "max |λ|": "max_magnitude",
    "10th pct": "magnitude_percentile_10",
    "max/min": "condition_number",
    "max/10th": "condition_number_10",
    "index": "index",
}


def _cells(spectrum: "Spectrum") -> list[str]:
    found = numbers(spectrum)
    return [number(found[key]) for key in _COLUMNS.values()]


def _figure(runs: Mapping[str, Sequence[PredictionCheck]], data: "Regression") -> "Figure":
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


def _draw_trend(runs: Mapping[str, Sequence[PredictionCheck]], key: str, ax: Any) -> None:
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
    plots.by_depth(layers, measured, predicted=predicted, ylabel=WORDS[key] + unit, ax=ax)


def _draw_pattern(run: PredictionCheck, data: "Regression", ax: Any, title: str) -> None:
    import resid_theory as rt

    net = run.setup.net(run.seed)
    order = net.definition5_order()
    matrix = rt.hessian(net, run.setup.loss, data)[order][:, order]
    rt.plots.hessian_pattern(matrix, block=len(order) // net.blocks, title=title, ax=ax)
