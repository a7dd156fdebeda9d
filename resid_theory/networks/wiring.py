"""Coefficients by which blocks read one another and the output reads them, checked."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_tensor, check_finite

NORM_PLACES = ("branch", "stream", "write")  # where normalizations are
Maps = tuple[list[list[Tensor | None]], list[Tensor | None]]


def fixed(argument: str, given: Any) -> Tensor:
    """Finite numbers in float64 on the CPU; a copy, which later changes of theirs do not reach."""
    numbers = check_finite(argument, as_tensor(argument, given))
    return numbers.detach().to("cpu", torch.float64, copy=True)


def number_table(A: Any, a: Any) -> tuple[Tensor, Tensor]:
    """Numbers: A, (K, K), zero above the diagonal, and a, (K + 1,), in float64."""
    reads, out = fixed("A", A), fixed("a", a)
    if reads.dim() != 2 or reads.shape[0] != reads.shape[1] or not len(reads):
        raise ValueError(f"A: got shape {tuple(reads.shape)}, needs (blocks, blocks)")
    if out.shape != (len(reads) + 1,):
        raise ValueError(f"a: got shape {tuple(out.shape)}, needs ({len(reads) + 1},)")
    if bool(reads.triu(1).any()):
        row, column = reads.triu(1).nonzero()[0].tolist()
        raise ValueError(
            f"A: block {row + 1} reads block {column}, which is not before it; needs zeros above "
            "the diagonal"
        )
    return reads, out


def has_maps(a: Any) -> bool:
    """Tell matrices (or vectors, diagonals of matrices) from numbers."""
    if isinstance(a, Tensor):
        return a.dim() > 1
    return isinstance(a, Sequence) and any(
        entry is not None and as_tensor("a", entry).dim() > 0 for entry in a
    )


def map_table(A: Any, a: Any) -> tuple[Maps, list[tuple[int, int]]]:
    """Matrices by which blocks are wired, and the widths (in, out) of the net and of each block."""
    try:
        table = [list(row) for row in A]
    except TypeError:
        raise ValueError(
            f"A: got {type(A).__name__} of what is no rows; needs a row of maps for each block"
        ) from None
    count = len(table)
    if not count or len(a) != count + 1:
        raise ValueError(f"a: got {len(a)} maps, needs one for the input and each of {count} rows")
    rows: list[list[Tensor | None]] = []
    for k, row in enumerate(table):
        maps = [_map(f"A[{k}][{j}]", entry) for j, entry in enumerate(row)]
        late = [j for j, m in enumerate(maps) if j > k and m is not None and bool(m.any())]
        if late:
            raise ValueError(
                f"A: block {k + 1} reads block {late[0]}, which is not before it; needs None there"
            )
        rows.append([*maps[: k + 1], *[None] * (k + 1 - len(maps))])
    out = [_map(f"a[{j}]", entry) for j, entry in enumerate(a)]
    outputs = _common("a", [m.shape[0] for m in out if m is not None])
    sources = []
    for j in range(count + 1):
        readers = [rows[k][j] for k in range(j, count)] + [out[j]]
        name = f"maps from block {j}" if j else "maps from the input"
        sources.append(_common(name, [m.shape[1] for m in readers if m is not None]))
    inner = [
        _common(f"A[{k}]", [m.shape[0] for m in row if m is not None]) for k, row in enumerate(rows)
    ]
    return (rows, out), [(sources[0], outputs), *zip(inner, sources[1:], strict=True)]


def _map(argument: str, given: Any) -> Tensor | None:
    if given is None:
        return None
    matrix = fixed(argument, given)
    matrix = torch.diag(matrix) if matrix.dim() == 1 else matrix
    if matrix.dim() != 2:
        raise ValueError(f"{argument}: got shape {tuple(matrix.shape)}, needs a matrix")
    return matrix


def _common(argument: str, widths: list[int]) -> int:
    if len(set(widths)) != 1:
        raise ValueError(f"{argument}: got widths {widths}, needs maps of one width, one at least")
    return widths[0]


def single_stream(reads: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    r"""λ and α, (K,), of the stream :math:`h \leftarrow \lambda_k h + \alpha_k F_k(h)`."""
    count = len(reads)
    wide = torch.cat([nn.functional.pad(reads, (0, 1)), out[None]])
    skip = torch.zeros(count, dtype=torch.float64)
    for k in range(count):
        largest = int(wide[k].abs().argmax())
        skip[k] = wide[k + 1, largest] / wide[k, largest] if wide[k, largest] else 0.0
        off = (wide[k + 1, : k + 1] - skip[k] * wide[k, : k + 1]).abs().max()
        if wide[0, 0] != 1 or off > 1e-12 * wide[k + 1].abs().max():
            raise ValueError(
                "layout: a normalized stream needs the coefficients of one stream, those of "
                "Layout.scaled"
            )
    return skip, wide.diagonal()[1:]
