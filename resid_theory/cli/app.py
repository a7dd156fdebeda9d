"""The command line: thin verbs over library calls, and errors and warnings of one line.

Only typer is imported at the top: ``--help`` answers at once, torch waits for the work.
"""

import re
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from resid_theory.cli import (
    demo,
    fold_commands,
    net_commands,
    shortcut_commands,
    sweep_commands,
    train_commands,
    verbs,
)
from resid_theory.cli.output import run_until_unread, spell_out
from resid_theory.runtime.allocator import keep_freed_memory


class _Program(TyperGroup):
    """The verbs, each completed when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        super().resolve_command(ctx, args)  # an error if there is no such verb
        return args[0], verbs.command_of(args[0]), args[1:]


app = typer.Typer(
    cls=_Program,
    add_completion=False,
    help="Identity and shortcut nets: curvature and noise stability, predicted and measured.",
)


def _say_version(asked: bool) -> None:
    if asked:
        import resid_theory

        typer.echo(f"resid_theory {resid_theory.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


verbs.register(app, demo.demo)
verbs.register(app, shortcut_commands.spectrum, shortcut_commands.setup_options)
verbs.register(app, shortcut_commands.zero_point, shortcut_commands.zero_point_options)
verbs.register(app, fold_commands.fold)
verbs.register(app, fold_commands.evaluate)
verbs.register(app, fold_commands.checkpoints)
verbs.register(app, net_commands.curvature, net_commands.curvature_options)
verbs.register(app, net_commands.cushions, net_commands.cushion_options)
verbs.register(app, train_commands.train, train_commands.train_options)
verbs.register(app, sweep_commands.sweep)

# click's own, which typer either imports or, in later versions, carries inside.
_UsageError: Any = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; an error is one line on standard error.

    Args:
        arguments: Words after the program's name; by default those of the process.

    Returns:
        The exit code: 0, 2 after an error, 130 after an interrupt.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    spell_out(sys.stdout, sys.stderr)
    warnings.formatwarning = _line
    keep_freed_memory()
    command = typer.main.get_command(app)

    def call() -> int:
        try:
            return command.main(words, prog_name="resid-theory", standalone_mode=False) or 0
        except SystemExit as error:  # so typer ends when nobody reads on
            if isinstance(error.__context__, BrokenPipeError):
                raise error.__context__ from error
            raise

    try:
        code = run_until_unread(call)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except _UsageError as error:
        return _fail(error.format_message() + _given(error, words), 2)
    except (ValueError, OSError, MemoryError) as error:
        return _fail(_named(str(error) or type(error).__name__, words), 2)
    # Later versions of typer turn an interrupt into this code themselves.
    return _fail("interrupted", code) if code == 130 else int(code)


def _line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning without the place in the code of the library."""
    return f"resid-theory: {message}\n"


def _given(error: Any, words: list[str]) -> str:
    """The value of the option that an error is about; click names the option alone."""
    names = getattr(getattr(error, "param", None), "opts", [])
    for word, behind in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if isinstance(error, typer.BadParameter) and name in names:
            return f" (got {value if equals else behind!r})"
    return ""


def _fail(message: str, code: int) -> int:
    print("resid-theory: " + " ".join(message.split()), file=sys.stderr)
    return code


def _named(message: str, words: list[str]) -> str:
    """A message that begins with the name of an argument, with the option's name instead."""
    found = re.match(r"(\w+)(?: \w+)?: ", message)
    if found is None or found[1] not in verbs.option_names(words[0]):
        return message
    return f"--{found[1].replace('_', '-')}{message[found.end(1) :]}"
