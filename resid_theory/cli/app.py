"""The command line: thin verbs over library calls, and errors of one line.

Only typer is imported at the top: ``--help`` answers at once, torch waits for the work.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any

import typer

from resid_theory.cli import (
    demo,
    fold_commands,
    net_commands,
    shortcut_commands,
    sweep_commands,
    train_commands,
)
from resid_theory.sweep.setup import Setup

__all__ = ["main"]

app = typer.Typer(
    cls=net_commands.Verbs,
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


for verbs in (demo, shortcut_commands, fold_commands, net_commands, train_commands, sweep_commands):
    verbs.register(app)

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
    except (ValueError, OSError, MemoryError) as error:
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
