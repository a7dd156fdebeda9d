"""Interlayer cushions: the share of a Jacobian between layers that acts on each sample."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_choice, check_int, check_within
from resid_theory.data import Batch, Data
from resid_theory.runtime.net_entry import check_differentiable, layered_net
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.result import Columns
from resid_theory.stability.jacobian import (
    better_side,
    differentiable,
    each_sample_a_batch,
    jacobian_product,
    squared_norm,
)
from resid_theory.stability.norms import row_norms
from resid_theory.stability.sample_statistics import Summaries
from resid_theory.stability.submaps import Submap, block_maps, map_between

KAPPAS = ("spatial", "none", "total")
METHODS = ("auto", "exact", "probes")


@dataclass(frozen=True, kw_only=True, eq=False)
class InterlayerCushions(Summaries):
    r"""Interlayer cushions of samples.

    Attributes:
        pieces: Names of the maps between two layers.
        cushions: :math:`\kappa \|J x\| / (\|J\|_F \|x\|)`, (pieces, samples), float64, on the
            CPU; nan where x is zero.
        standard_errors: Standard error of each value over the probes; zero where the norm is exact.
        probes: Number of probes of each map, 0 where the norm is exact.
        sides: Side of the products of each map: ``"in"``, J v; ``"out"``, u J.
        kappa: One of ``KAPPAS``.
        batchnorm: ``"eval"``, running statistics, or ``"batch"``, each sample's own.
        notes: What was done to the data on the way into the net.
    """

    pieces: tuple[str, ...]
    cushions: Tensor
    standard_errors: Tensor
    probes: tuple[int, ...]
    sides: tuple[str, ...]
    kappa: str
    batchnorm: str
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows."""
        return self.pieces

    @property
    def values(self) -> Tensor:
        """The cushions, (pieces, samples)."""
        return self.cushions

    @property
    def mean(self) -> Tensor:
        """Mean over the samples that have a value, (pieces,)."""
        return self.values.nanmean(1)

    @property
    def sampling_error(self) -> Tensor:
        """Standard error of the mean that comes from the choice of samples, (pieces,)."""
        known = (row[~row.isnan()] for row in self.values)
        return torch.stack([row.std() / len(row) ** 0.5 for row in known])

    @property
    def probe_error(self) -> Tensor:
        """Standard error of the mean that comes from the probes, (pieces,)."""
        count = (~self.values.isnan()).sum(1)
        return self.standard_errors.nan_to_num(0.0).square().sum(1).sqrt() / count

    def intervals(self, confidence: float = 0.95) -> Tensor:
        """Intervals over the probes by Student's t, (pieces, samples, 2); no width where exact."""
        confidence = check_within("confidence", confidence, 0, 1, "()")
        from scipy import stats  # half a second of import

        widths = [stats.t.ppf((1 + confidence) / 2, k - 1) if k else 0.0 for k in self.probes]
        half = torch.tensor(widths, dtype=torch.float64)[:, None] * self.standard_errors
        return torch.stack([self.values - half, self.values + half], dim=2)

    headline = (
        "interlayer cushions of {0.samples} samples: kappa {0.kappa}, BatchNorm {0.batchnorm}"
    )

    def table(self) -> Columns:
        """One row for each map; last, the mean with its two standard errors, and the norm."""
        names = {"in": "J v", "out": "u J"}
        how = [f"{k} probes, {names[side]}" if k else f"exact, by {names[side]}"
               for k, side in zip(self.probes, self.sides, strict=True)]  # fmt: skip
        return {
            **super().table(),
            "mean": self.mean,
            "sampling_error": self.sampling_error,
            "probe_error": self.probe_error,
            "norm": how,
        }


def interlayer_cushions(
    net: nn.Module,
    data: Any,
    *,
    start: int | str,
    stop: int | str | None = None,
    kappa: str = "spatial",
    method: str = "auto",
    probes: int = 30,
    generator: torch.Generator | int = 0,
    batchnorm: str = "eval",
    batch: int = 64,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> InterlayerCushions:
    r"""Interlayer cushions of every sample between two places of a net.

    .. math:: \mu(x) = \kappa \frac{\|J z\|_2}{\|J\|_F \|z\|_2}

    J is the Jacobian of the map from the input z of ``start`` to the input of ``stop``. The
    numerator is one exact Jacobian-vector product.

    Args:
        net: Any module. In an ``nn.Sequential`` the map is ``net[start:stop]``. In any other module
            the whole net is run with another z in place of ``start``'s input, so that paths around
            ``start`` stay fixed.
        data: Inputs, with or without targets, in any form that :func:`layer_cushions` takes.
        start: Index in an ``nn.Sequential``, or a module's name, dotted if it lies deeper.
        stop: The same; its own layer does not belong to the map. None: to the net's output.
        kappa: ``"spatial"``, √(positions of z), the interpretation of the paper's √n that fits its
            numbers; ``"none"``, 1 (fully connected); ``"total"``, √(entries of z), with which the
            cushion is the response to small noise. Axes behind the second are positions.
        method: ``"exact"``: as many products as the shorter side of J is long. ``"probes"``: random
            signs on the side where they vary less. ``"auto"``: the cheaper one.
        probes: Number of sign vectors; the relative error of a cushion is about
            √(1 / (2 probes r)) with r the effective rank of JᵀJ.
        generator: Source of the signs, on the CPU, or a seed.
        batchnorm: ``"eval"``: running statistics. ``"batch"``: each sample is a batch of its own;
            then the map does not see the scale of z, J z is almost zero in a plain net, and only
            shortcuts are left. A net in train mode is measured in the mode given here.
        batch: Rows in one evaluation of the map, samples times probes.
        device: Device to measure on; another device than the net's takes a copy of the net there.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The cushions, in one row.

    Raises:
        ValueError: If there is no such module, the map's samples depend on one another, a name is
            unknown, or the data do not fit the net.

    Source:
        Arora, Ge, Neyshabur & Zhang, arXiv:1802.05296, Definitions 5 and 8; Yu & Tomasi,
        arXiv:1905.10944, section 5.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.ReLU())
        >>> _ = torch.nn.init.eye_(net[0].weight)
        >>> rt.interlayer_cushions(net, torch.ones(1, 4), start=0, kappa="total").values.tolist()
        [[1.0]]
    """
    return _measure(net, data, lambda net, part: [map_between(net, part, start, stop)], kappa,
                    method, probes, generator, batchnorm, batch, device, progress)  # fmt: skip


def block_cushions(
    net: nn.Module,
    data: Any,
    *,
    blocks: Sequence[str] | None = None,
    kappa: str = "spatial",
    method: str = "auto",
    probes: int = 30,
    generator: torch.Generator | int = 0,
    batchnorm: str = "eval",
    batch: int = 64,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> InterlayerCushions:
    """Interlayer cushions of whole modules, each from its input to its output.

    Args:
        net: Any module.
        data: Inputs, with or without targets, in any form that :func:`layer_cushions` takes.
        blocks: Names of modules, dotted if they lie deeper; None for the modules ``block1``,
            ``block2``, ... of this library's networks.
        kappa: Factor κ of the cushion: ``"spatial"``, √(positions); ``"none"``, 1; or ``"total"``,
            √(entries) of the input.
        method: ``"exact"``, ``"probes"``, or ``"auto"`` for the cheaper one.
        probes: Number of sign vectors.
        generator: Source of the signs, on the CPU, or a seed.
        batchnorm: ``"eval"``: running statistics; ``"batch"``: each sample is a batch of its own.
        batch: Rows in one evaluation of a block, samples times probes.
        device: Device to measure on; another device than the net's takes a copy of the net there.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The cushions, a row for each block.

    Raises:
        ValueError: If the net has no such blocks, the samples of a block depend on one another, a
            name is unknown, or the data do not fit the net.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 5: the nine blocks of a net of depth 20.
    """
    return _measure(net, data, lambda net, part: block_maps(net, part, blocks), kappa, method,
                    probes, generator, batchnorm, batch, device, progress)  # fmt: skip


def _measure(
    net: nn.Module, data: Any, cut: Callable[[nn.Module, Batch], list[Submap]], kappa: str,
    method: str, probes: int, generator: torch.Generator | int, batchnorm: str, batch: int,
    device: torch.device | str | None, progress: bool,
) -> InterlayerCushions:  # fmt: skip
    """Cushions of the maps into which ``cut`` takes a net, batch after batch."""
    check_choice("kappa", kappa, KAPPAS)
    check_choice("method", method, METHODS)
    check_choice("batchnorm", batchnorm, ("eval", "batch"))
    check_int("probes", probes, minimum=2)
    check_int("batch", batch)
    source = as_generator(generator)
    net = check_differentiable(layered_net(net, device))
    samples = Data.of(data, like=net, targets=False)
    rows: dict[str, list[Tensor]] = {}
    plans: dict[str, tuple[int | None, str]] = {}
    own = each_sample_a_batch(net) if batchnorm == "batch" else nullcontext()
    with preserved(net), differentiable(), own:
        parts = samples.chunks(batch, "interlayer cushions" if progress else None)
        for piece in (piece for part in parts for piece in cut(net, part)):
            z = piece.z
            if piece.name not in plans:
                sizes = z[0].numel(), _check_independent(piece)[0].numel()
                if method == "exact" or (method == "auto" and min(sizes) <= probes):
                    plans[piece.name] = None, "out" if sizes[1] <= sizes[0] else "in"
                else:
                    side = better_side(piece.function, z, generator=source, rows=batch)
                    plans[piece.name] = probes, side
            count, side = plans[piece.name]
            _, product = jacobian_product(piece.function, z, z)
            above, below = (row_norms(t.reshape(len(z), -1)).cpu() for t in (product, z))
            mean, error = squared_norm(
                piece.function, z, probes=count, side=side, generator=source, rows=batch
            )
            entries = {"none": 1, "spatial": z.shape[2:].numel(), "total": z[0].numel()}[kappa]
            values = math.sqrt(entries) * above / below / mean.sqrt()
            # By the delta method; the numerator is exact.
            found = torch.stack([values, values * error / (2 * mean)])
            rows.setdefault(piece.name, []).append(found)
    measured = torch.stack([torch.cat(parts, dim=1) for parts in rows.values()])
    return InterlayerCushions(
        pieces=tuple(rows),
        cushions=measured[:, 0],
        standard_errors=measured[:, 1],
        probes=tuple(plans[name][0] or 0 for name in rows),
        sides=tuple(plans[name][1] for name in rows),
        kappa=kappa,
        batchnorm=batchnorm,
        notes=tuple(samples.notes),
    )


@torch.no_grad()
def _check_independent(piece: Submap) -> Tensor:
    """Output of one sample, after a check that no sample changes the output of another one."""
    together, alone = piece.function(piece.z.clone()), piece.function(piece.z[:1].clone())
    for found, count in ((together, len(piece.z)), (alone, 1)):
        if found.shape[:1] != (count,):
            raise ValueError(
                f"net: {piece.name} gives {tuple(found.shape)} for a batch of {count}; needs the "
                "samples along the first axis"
            )
    # Other sizes of a batch round differently, by much less than the root of the precision.
    tolerance = torch.finfo(together.dtype).eps ** 0.5 * float(together.abs().max())
    if float((together[:1] - alone).abs().max()) > tolerance:
        raise ValueError(
            f"net: in {piece.name} the samples of a batch depend on one another, e.g. by BatchNorm "
            "without running statistics or by noise; a Jacobian of one sample does not exist "
            "(batchnorm='batch' takes each sample as a batch of its own)"
        )
    return alone
