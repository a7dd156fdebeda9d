"""Noise in activations and weights: measured relative errors beside the law that predicts them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_choice, check_int
from resid_theory.data import Batch, Data
from resid_theory.runtime.net_entry import layered_net
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.result import Columns, Result
from resid_theory.stability.jacobian import differentiable
from resid_theory.stability.jacobian_reach import OnwardMap, chain_of_layers, normal_like
from resid_theory.stability.layer_inputs import ROUTED, LayerLook, looks_at
from resid_theory.stability.linear_uses import LinearUse
from resid_theory.stability.map_observer import MapObserver
from resid_theory.stability.norms import row_norms
from resid_theory.stability.submaps import joined


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseCurves(Result):
    """Relative errors caused by noise, measured and predicted.

    Attributes:
        places: Names of the layers at whose outputs errors are measured (noise in activations), or
            into whose weights noise is put (noise in weights).
        levels: Strengths of the noise, (levels,), float64.
        relative: Whether a level is relative to the norm of the tensor that the noise is added to.
        measured: Error of the layer's output over the output's norm, root mean square over the
            draws, (levels, places, samples), float64, on the CPU.
        predicted: Prediction of ``measured`` by the law, same shape.
        at_output: Relative error of the net's output, same shape.
        draws: Number of noise vectors for each sample and level.
        notes: What was done to the data on the way into the net.
    """

    places: tuple[str, ...]
    levels: Tensor
    relative: bool
    measured: Tensor
    predicted: Tensor
    at_output: Tensor
    draws: int
    notes: tuple[str, ...] = ()

    @property
    def median(self) -> Tensor:
        """Median over the samples of ``measured``, (levels, places)."""
        return self.measured.nanquantile(0.5, dim=2)

    @property
    def predicted_median(self) -> Tensor:
        """Median over the samples of ``predicted``, (levels, places)."""
        return self.predicted.nanquantile(0.5, dim=2)

    @property
    def output_median(self) -> Tensor:
        """Median over the samples of ``at_output``, (levels, places)."""
        return self.at_output.nanquantile(0.5, dim=2)

    headline = (
        "errors by noise, relative={0.relative}, {0.draws} draws: medians over "
        "{0.measured.shape[2]} samples"
    )

    def table(self) -> Columns:
        """One row for each level and place: medians over the samples, and two quartiles."""
        levels, places = self.measured.shape[:2]
        low, high = (self.measured.nanquantile(level, dim=2) for level in (0.25, 0.75))
        return {
            "level": self.levels.repeat_interleave(places),
            "place": self.places * levels,
            "measured": self.median.flatten(),
            "measured_q25": low.flatten(),
            "measured_q75": high.flatten(),
            "predicted": self.predicted_median.flatten(),
            "at_output": self.output_median.flatten(),
        }


def activation_noise(
    net: nn.Module,
    data: Any,
    *,
    start: int = 0,
    levels: Sequence[float] = (0.001, 0.01, 0.1, 1.0),
    draws: int = 10,
    probes: int = 30,
    generator: torch.Generator | int = 0,
    batch: int = 64,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> NoiseCurves:
    r"""Noise at one layer's input, and the relative error at every later linear layer.

    The noise is :math:`\eta \sim N(0, (\epsilon \|z\|)^2 I / n)` for a sample's input z with n
    entries. As long as the net is linear over the size of the noise, the error at layer j is
    :math:`\epsilon \|J\|_F / (\sqrt{n} \|x_j\|)`; without biases that is
    :math:`\epsilon / \mu^{total}`, the interlayer cushion with kappa ``"total"``.

    Args:
        net: An ``nn.Sequential`` whose layers are one chain.
        data: Inputs (m, ...), ``rt.Images``, a pair (x, y), an object with ``.x``, or a loader.
        start: Position of the module at whose input the noise is added, counted in the net with
            nested ``nn.Sequential`` taken apart.
        levels: ε, relative to the norm of the input.
        draws: Number of noise vectors for each sample and level; the levels share them.
        probes: Number of sign vectors for the predicted law.
        generator: Source of all randomness, on the CPU, or a seed.
        batch: Samples in one forward pass.
        device: Device to measure on; another device than the net's takes a copy of the net there.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The curves, at the output of every linear layer from ``start`` on.

    Raises:
        ValueError: If the net is no chain, there is no linear layer from ``start`` on, a level is
            not above 0, or the data do not fit the net.

    Source:
        Arora, Ge, Neyshabur & Zhang, arXiv:1802.05296, section 3 and Figure 1; the law for small
        noise is derived from their Definition 5.
    """
    net, source = layered_net(net, device), as_generator(generator)
    strengths = _levels(levels)
    check_int("draws", draws)
    check_int("batch", batch)
    chain = chain_of_layers(net)
    places = chain.layers_from(start)
    end = len(chain.modules) - 1
    both = places if places[-1] == end else [*places, end]
    measured, predicted, samples = [], [], Data.of(data, like=net, targets=False)
    with preserved(net), differentiable(), torch.no_grad():
        for part in samples.chunks(batch, "noise" if progress else None):
            onward = OnwardMap(chain, chain.input_of(start, part), start, both)
            norms, z = onward.jacobian_norms(probes, source), onward.z
            law = norms.frobenius / z[0].numel() ** 0.5 * norms.inputs / norms.outputs
            predicted.append(strengths[:, None, None] * law[: len(places)])
            clean = onward(z.clone())
            below = onward.norms(clean)
            squares = torch.zeros(len(strengths), len(both), len(z), dtype=torch.float64)
            for _ in range(draws):
                noise = onward.noise(source)
                for number, level in enumerate(strengths.tolist()):
                    change = onward.norms(onward(z + level * noise) - clean)
                    squares[number] += (change / below).square() / draws
            measured.append(squares.sqrt())
    errors = torch.cat(measured, 2)
    return NoiseCurves(
        places=tuple(chain.names[position] for position in places),
        levels=strengths,
        relative=True,
        measured=errors[:, : len(places)],
        predicted=torch.cat(predicted, 2),
        at_output=errors[:, -1:].expand(-1, len(places), -1),
        draws=draws,
        notes=tuple(samples.notes),
    )


def weight_noise(
    net: nn.Module,
    data: Any,
    *,
    layers: Sequence[str] | None = None,
    levels: Sequence[float] = (0.01, 0.05, 0.1),
    relative: bool = False,
    draws: int = 5,
    generator: torch.Generator | int = 0,
    batch: int = 256,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> NoiseCurves:
    r"""Noise in the weights of one layer at a time, and its effect on that layer and on the output.

    Weights become :math:`\hat W + s N` with N normal. The layer's output changes by
    :math:`s \sqrt{\sum_{o,p} \|patch_{op}\|^2}` in root mean square, exactly: for a linear layer
    :math:`s \sqrt{n_{out}} \|x\|`. Relative noise,
    :math:`s = \epsilon \|\hat W\|_F / \sqrt{\#W}`, therefore measures the layer cushion. The effect
    of noise of the same s for all nets, the paper's "same amount of noise", depends on
    :math:`\|\hat W x\| / \|x\|` alone.

    Args:
        net: Any module; its weights are not written to.
        data: Inputs, with or without targets, in any form that :func:`layer_cushions` takes.
        layers: Names of the maps, as :func:`layer_cushions` has them; all if None but those whose
            rows samples choose. A map that is used several times has the same noise in each use;
            its error is that of the first one. Other uses of its weight, as the lookups of a
            tied embedding, have none, which a note says.
        levels: s, or ε if ``relative``.
        relative: Whether a level is relative to the root mean square of the effective weight.
        draws: Number of noise arrays for each layer; the levels share them.
        generator: Source of the noise, on the CPU, or a seed.
        batch: Samples in one forward pass.
        device: Device to measure on; another device than the net's takes a copy of the net there.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The curves.

    Raises:
        ValueError: If data do not fit the net, a name is unknown, or a layer cannot be measured.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 5; Arora et al., arXiv:1802.05296, section 3.
    """
    net, source = layered_net(net, device), as_generator(generator)
    strengths = _levels(levels)
    check_int("draws", draws)
    check_int("batch", batch)
    samples, observer = Data.of(data, like=net, targets=False), MapObserver(net)
    layers = observer.first_names(layers)
    states: dict[str, Tensor] = {}  # of the generator, before the noise of each layer
    rows: list[Tensor] = []
    names: list[str] = []
    with preserved(net), torch.no_grad():
        parts = samples.chunks(batch, "weight noise" if progress else None)
        for part, look in looks_at(net, observer, parts):
            known, lost = {name for name, _ in look.layouts}, look.reasons | look.apart
            for name in layers or ():
                check_choice("layers", name, observer.ordered(known | lost.keys()))
            names = names or observer.ordered(known if layers is None else layers)
            if not names:
                raise ValueError("net: has no layer into whose weights noise could be put")
            if gone := {name: lost[name] for name in names if name in lost}:
                raise ValueError(f"layers: {gone}")
            measured = []
            for name in names:
                # Every batch meets the same noise, which is too large to keep for all layers.
                source.set_state(states.setdefault(name, source.get_state()))
                measured.append(_one_batch(
                    net, part, observer, name, look, strengths, relative, draws, source
                ))  # fmt: skip
            rows.append(torch.stack(measured, 2))
    errors, predicted, output = torch.cat(rows, 3)
    notes = list(samples.notes)
    for name in names:
        if beside := observer.beside(name):
            notes.append(f"{name}: noise is in this map, not in other uses of its weight: {beside}")
    return NoiseCurves(
        places=tuple(names),
        levels=strengths,
        relative=relative,
        measured=errors,
        predicted=predicted,
        at_output=output,
        draws=draws,
        notes=tuple(notes),
    )


def _one_batch(
    net: nn.Module, batch: Batch, observer: MapObserver, name: str, look: LayerLook,
    levels: Tensor, relative: bool, draws: int, source: torch.Generator,
) -> Tensor:  # fmt: skip
    """Measured and predicted errors of a layer, and those at the output, (3, levels, b)."""
    uses: list[LinearUse] = []

    def keep(use: LinearUse) -> None:
        if use.key == (name, 1):
            uses.append(replace(use, input=use.input.clone()))

    with observer.watching(keep):
        clean = joined(batch.call(net), batch.size)
    if not uses or not look.fits((name, 1), uses[0].input, batch.size):
        raise ValueError(f"net: the layer {name!r} cannot be measured: {ROUTED}")
    use, layout = uses[0], look.layouts[name, 1]
    z, weight = use.input, use.weight
    if relative:
        levels = levels * (float(row_norms(weight.reshape(1, -1))) / weight.numel() ** 0.5)
    noises = [normal_like(weight, source) for _ in range(draws)]

    def norms(value: Tensor) -> Tensor:
        return row_norms(layout.rows(value, batch.size)).cpu()

    def moved(noise: Tensor) -> Tensor:
        """Norm of the change of the net's output by noise added to the layer's weight."""

        def add(use: LinearUse) -> None:
            if use.name == name:
                use.place.add_(use.apply(use.input, noise).view_as(use.place))

        with observer.watching(add):
            return row_norms(joined(batch.call(net), batch.size) - clean).cpu()

    below = norms(use.apply(z, weight))
    ones = torch.ones_like(weight, dtype=torch.float64)
    patches = layout.rows(use.apply(z.double().square(), ones), batch.size).sum(1).cpu()
    predicted = levels[:, None] * (patches.sqrt() / below)
    measured = torch.zeros(len(levels), batch.size, dtype=torch.float64)
    output = torch.zeros_like(measured)
    scale = row_norms(clean).cpu()
    for noise in noises:
        change = norms(use.apply(z, noise)) / below
        for number, level in enumerate(levels.tolist()):
            measured[number] += (level * change).square() / len(noises)
            output[number] += (moved(level * noise) / scale).square() / len(noises)
    return torch.stack([measured.sqrt(), predicted, output.sqrt()])


def _levels(levels: Sequence[float]) -> Tensor:
    found = torch.as_tensor(levels, dtype=torch.float64).clone()
    if found.dim() != 1 or len(found) == 0 or not bool(((found > 0) & found.isfinite()).all()):
        raise ValueError(f"levels: got {levels!r}, needs a list of finite numbers above 0")
    return found
