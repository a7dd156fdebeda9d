"""Verbs of n-shortcut nets: exact spectra, and predictions at zero weights."""

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resid_theory.cli.comparison import PredictionCheck, measure, numbers
from resid_theory.cli.output import (
    Files,
    Json,
    Out,
    Overwrite,
    bar,
    finish,
    number,
    say,
    say_table,
    shows_progress,
    whole_numbers,
)
from resid_theory.cli.verbs import options_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resid_theory.sweep.setup import Setup
    from resid_theory.theory import ZeroPoint

WORDS = {
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
_SYMBOLS = (
    "M: gradient of the loss by the output times the input of a block, mean over samples; c: "
    "product of the activations' slopes at zero; s_1: largest singular value."
)
# Both ends and four magnitudes, a count or two at each of the 50 halvings to round-off.
_COUNTS = 500
_ONE_THREAD = 2000  # parameters; above, threads make eigenvalues faster


def setup_options() -> list[inspect.Parameter]:
    """Options of an n-shortcut net, its initialization and its data."""
    from resid_theory.sweep.setup import Setup

    return options_of({"": Setup})


def zero_point_options() -> list[inspect.Parameter]:
    """The same without initial weights, which are zero."""
    return [option for option in setup_options() if option.name not in ("init", "plain", "scale")]


def spectrum(
    seeds: Annotated[str, typer.Option(help="How many (3), or which (0,1,2).")] = "1",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Measure all eigenvalues of an n-shortcut net's Hessian, beside the prediction, if any.

    A trained net or one of your own: the verb curvature.
    """
    import torch

    import resid_theory as rt
    from resid_theory.runtime.resources import matmul_rate

    files = Files.of("spectrum", out, None, overwrite=overwrite)
    setup, chosen, shows = _setup(options), _seeds(seeds), shows_progress(as_json)
    data = setup.load(progress=shows)
    cost = rt.curvature.hessian_cost(setup.net(chosen[0]), setup.loss, data)
    # LAPACK works on a copy and needs about as much again.
    size = max(cost.bytes, 24 * cost.parameters**2)
    if not as_json:
        # LAPACK takes 2.2 to 2.6 P³ steps at the rate of matrix products, measured.
        once = cost.seconds + 2.5 * cost.parameters**3 / matmul_rate(torch.device("cpu"))
        minutes = len(chosen) * once / 60
        took = f", about {minutes:,.0f} min" if minutes > 1 else ""
        say(f"P = {cost.parameters:,}, method {cost.method}, {size / 2**20:,.1f} MiB{took}")
    with threads_for(cost.parameters):
        shown = bar(chosen, as_json, "seeds")
        runs = [measure(setup, data, seed, progress=shows) for seed in shown]
    content = {
        "setup": asdict(setup),
        "cost": {"method": cost.method, "parameters": cost.parameters, "bytes": size},
        **_summary(runs),
    }
    written = files.save(content, lambda: _spectrum_figure(runs))
    finish(content, as_json, lambda: _spectrum_table(content), written)


def zero_point(
    exact: Annotated[
        bool, typer.Option("--exact", help="n = 1: count eigenvalues at any depth; slow.")
    ] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Predict the Hessian at zero weights, at any depth, and the escape; nothing is measured."""
    import resid_theory as rt

    files = Files.of("zero_point", out, None, overwrite=overwrite)
    setup = _setup({**options, "init": "zero"})
    data = setup.load(progress=shows_progress(as_json))
    point = setup.zero_point(data, exact=exact)
    # Limits and counts are many small problems at any depth.
    with threads_for(point.size if point.method == "dense solver" else 0):
        if point.method == "inertia counts" and not as_json:
            say(_estimate(point))
        content = {"setup": asdict(setup), **point.summary(), "notes": point.notes}
        unused = _unused(setup, exact)
        content["reason"] += f".{unused}" if unused else ""
        draw = (lambda: rt.plots.zero_point(point)) if point.is_listed else None
        written = files.save(content, draw)
    finish(content, as_json, lambda: _zero_point_table(content), written)


def _estimate(point: "ZeroPoint") -> str:
    """Words on the counts of eigenvalues that a summary takes, and their time."""
    import torch

    from resid_theory.runtime.resources import clock
    from resid_theory.theory.zero_weights.counted_spectrum import CountedSpectrum

    assert isinstance(point.statistics, CountedSpectrum)
    zero, device = torch.zeros(1, dtype=torch.float64), torch.device("cpu")
    start = clock(device)
    point.statistics.counts_below(zero)
    seconds = clock(device) - start
    return (
        f"P = {point.size:,}, {seconds:.2g} s a count of eigenvalues; about {_COUNTS} counts, "
        f"{_COUNTS * seconds / 60:,.1f} min."
    )


def _setup(options: Mapping[str, Any]) -> "Setup":
    from resid_theory.sweep.setup import Setup

    return Setup(**{name: value for name, value in options.items() if value is not None})


def _unused(setup: "Setup", exact: bool = False) -> str:
    """A sentence on an option that changes nothing; empty if there is none."""
    if setup.shortcut_depth > 1:
        return " --exact has no effect: these eigenvalues are not counted." if exact else ""
    layer = "a block of one layer has nothing between its layers"
    return "" if setup.mid is None else f" --mid {setup.mid} has no effect: {layer}."


def _summary(runs: Sequence[PredictionCheck]) -> dict[str, Any]:
    """Summary of a list of runs: each one, their mean and their spread."""

    def over(reduce: Any, rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        return {key: reduce([row[key] for row in rows]) for key in rows[0]}

    first = runs[0]
    measured = [numbers(run.measured) for run in runs]
    predicted = [numbers(run.predicted) for run in runs if run.predicted is not None]
    if predicted:
        measured = [n | {"distance": r.distance} for n, r in zip(measured, runs, strict=True)]
    return {
        "note": first.note + _unused(first.setup),
        "runs": [run.content() for run in runs],
        "mean": over(fmean, measured),
        "standard_deviation": over(_spread, measured),
        "predicted_mean": over(fmean, predicted) if predicted else None,
    }


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation between seeds (n - 1); None for one seed or an infinite value."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def _spectrum_table(content: Mapping[str, Any]) -> None:
    rows = [["", "measured", "± sd", "predicted"]]
    columns = [content[key] or {} for key in ("mean", "standard_deviation", "predicted_mean")]
    for key, words in WORDS.items():
        if key in content["mean"]:
            rows.append([words, *(number(column.get(key)) for column in columns)])
    first = content["runs"][0]
    if first["a_priori_bound"] is not None:
        rows.append([WORDS["a_priori_bound"], "", "", number(first["a_priori_bound"])])
    say_table("<>>>", rows)
    say(content["note"])
    _say_symbols(content["note"])


def _spectrum_figure(runs: Sequence[PredictionCheck]) -> "Figure":
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


def _zero_point_table(content: Mapping[str, Any]) -> None:
    say(f"{content['verdict']}: {content['reason']}")
    _say_symbols(content["reason"])
    say(f"P = {content['parameters']:,}, by {content['method']}")
    found = {words: content.get(key) for key, words in WORDS.items()}
    say_table("<>", [(words, number(v)) for words, v in found.items() if v is not None])
    for note in content["notes"]:
        say(f"Note: {note}.")


def _say_symbols(words: str) -> None:
    """Meaning of the letters in a reason, where it has any."""
    if re.search(r"\bM\b", words):
        say(_SYMBOLS)


def _seeds(text: str) -> list[int]:
    """``3`` is three seeds, ``0,1,2`` are these, ``7,`` is the seed 7."""
    if "," not in text:
        return list(range(*whole_numbers("seeds", text, 1)))
    seeds = whole_numbers("seeds", text, 0)
    if max(seeds) >= 1 << 63:
        raise ValueError(f"seeds: got {max(seeds)}, needs numbers below 2^63")
    return seeds


@contextmanager
def threads_for(size: int) -> Iterator[None]:
    """One thread for small eigenproblems, which gain nothing from more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if size > _ONE_THREAD else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
