"""Bounds on the difference of a matrix from the one that it stands for."""

from dataclasses import asdict, dataclass, replace

from resid_theory.runtime.result import Result


@dataclass(frozen=True, kw_only=True)
class MatrixError(Result):
    """Difference E of the matrix that an operator multiplies by from the one it stands for.

    Attributes:
        spectral: Largest shift of an eigenvalue, the spectral norm of E; in units of the
            eigenvalues, as all three.
        frobenius: Frobenius norm of E.
        trace: Magnitude of the trace of E.
    """

    spectral: float = 0.0
    frobenius: float = 0.0
    trace: float = 0.0

    def at_least(self, norm: float) -> "MatrixError":
        """The larger of this error and one of some Frobenius norm that has no pattern."""
        return replace(
            self,
            spectral=max(self.spectral, norm),
            frobenius=max(self.frobenius, norm),
            trace=max(self.trace, norm),
        )

    def scaled(self, unit: float) -> "MatrixError":
        """The error of the operator times a positive number."""
        return MatrixError(**{name: unit * part for name, part in asdict(self).items()})
