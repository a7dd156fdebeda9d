"""Verbs of the command line, with options taken from the signatures of library functions.

A verb imports the library when it is called, so that ``--help`` of the program answers at once.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

Borrowed = Callable[[], Iterable[inspect.Parameter]]
"""Imports what it needs and returns further options of a verb."""

_VERBS: dict[str, tuple[Callable[..., None], Borrowed | None]] = {}


def register(app: typer.Typer, verb: Callable[..., None], borrowed: Borrowed | None = None) -> None:
    """Add a verb; the options of ``borrowed`` reach it as keyword arguments."""
    name = typer.main.get_command_name(verb.__name__)
    _VERBS[name] = verb, borrowed

    def listed() -> None: ...

    listed.__doc__ = verb.__doc__
    app.command(name)(listed)


def command_of(name: str) -> Any:
    """The complete command of a verb, as typer builds it."""
    verb, borrowed = _VERBS[name]
    call = verb if borrowed is None else _extended(verb, borrowed())
    app = typer.Typer(add_completion=False)
    app.command(name)(call)
    return typer.main.get_command(app)


def option_names(name: str) -> list[str]:
    """All options of a verb, as the library names its arguments."""
    found = command_of(name).params
    return [str(each.name) for each in found if each.param_type_name == "option"]


def _extended(
    verb: Callable[..., None], borrowed: Iterable[inspect.Parameter]
) -> Callable[..., None]:
    own = inspect.signature(verb).parameters.values()
    declared = [p for p in own if p.kind is not p.VAR_KEYWORD]
    taken = {p.name for p in declared}
    further = [p for p in borrowed if p.name not in taken]
    hints = get_type_hints(verb, include_extras=True)

    @wraps(verb)
    def call(**values: Any) -> None:
        verb(**values)

    parameters = [*declared, *further]
    # Not wraps' copy: typer would follow it to the verb's own signature.
    del call.__wrapped__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: hints.get(p.name, p.annotation) for p in parameters}
    return call


def options_of(
    sources: Mapping[str, Callable[..., Any]], *, leave: Iterable[str] = ()
) -> list[inspect.Parameter]:
    """Options for the arguments of library functions or the fields of dataclasses.

    An option that is not given is None, which stands for the default of the library. Arguments that
    no word can express, such as tensors, are left out.

    Args:
        sources: By the word that help texts put in front where they differ; that of "" comes alone.
        leave: Arguments that are no options.
    """
    from resid_theory.sweep.config import arguments_of

    found: dict[str, tuple[type, dict[str, str]]] = {}
    for word, source in sources.items():
        texts = _described(source)
        for name, (kind, default) in arguments_of(source).items():
            if name in leave:
                continue
            shown = "" if default is None else f" Default: {default}."
            found.setdefault(name, (kind, {}))[1][word] = texts.get(name, "") + shown
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, typer.Option(help=_joined(texts))],
        )
        for name, (kind, texts) in found.items()
    ]


def with_defaults(options: Mapping[str, Any], *sources: Callable[..., Any]) -> dict[str, Any]:
    """The options, with the library's default for each one that was not given."""
    from resid_theory.sweep.config import arguments_of

    defaults = {n: value for source in sources for n, (_, value) in arguments_of(source).items()}
    return {n: defaults[n] if value is None else value for n, value in options.items()}


def _joined(texts: Mapping[str, str]) -> str:
    if "" in texts or len(set(texts.values())) == 1:  # the first source is the verb's own
        return next(iter(texts.values()))
    return " ".join(f"{word}: {text}" for word, text in texts.items())


def _described(source: Callable[..., Any]) -> dict[str, str]:
    """Descriptions of arguments from a docstring in Google style, without markup."""
    text = inspect.getdoc(source) or ""
    found = re.search(r"^(?:Args|Attributes):\n((?:[ \t].*\n?|\n)*)", text, re.MULTILINE)
    entries = re.split(r"^ {4}(\w+): ", found[1], flags=re.MULTILINE)[1:] if found else []
    return {
        name: re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(body.split())).replace("`", "")
        for name, body in zip(entries[::2], entries[1::2], strict=True)
    }
