"""One row of the reliability table: what was tried, how often, and what was lost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Trial = tuple[str, Callable[[], str | None]]
"""A name, and a call that returns what went wrong, or None."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A promise and how it stood up to trials.

    Attributes:
        fault: What was done to the library.
        promise: What must hold nevertheless.
        trials: How often it was tried.
        lost: What went wrong, a sentence each; empty if nothing did.
        note: What else was measured.
    """

    fault: str
    promise: str
    trials: int
    lost: tuple[str, ...]
    note: str = ""


def judged(fault: str, promise: str, trials: Iterable[Trial], note: str = "") -> Outcome:
    """Make every trial; one that raises counts as lost."""
    lost, count = [], 0
    for name, call in trials:
        count += 1
        try:
            wrong = call()
        except Exception as error:  # a trial decides itself which errors are right
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            lost.append(f"{name}: {wrong}")
    return Outcome(fault=fault, promise=promise, trials=count, lost=tuple(lost), note=note)


def refused(
    call: Callable[[], object],
    *,
    kinds: type[Exception] | tuple[type[Exception], ...] = (ValueError, OSError),
    says: Sequence[str] = (),
    length: int = 500,
) -> str | None:
    """What is wrong with a refusal; None if it is one short sentence that says all it should."""
    try:
        call()
    except kinds as error:
        text = str(error)
        missing = [word for word in says if word not in text]
        if missing:
            return f"does not say {missing}: {text}"
        if "\n" in text or len(text) > length:
            return f"is no single short sentence: {text!r}"
        return None
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return "was not refused"
