"""A command's options are its recipe's fields; what it raises becomes one line and an exit code."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gradfix.cli.console import Console
from gradfix.errors import GradfixError, options_as_on
from gradfix.recipes import Recipe, validate

DONE, REFUSED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="gradfix",
    help="Move a fine-tune to a new release of its base model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@contextmanager
def refusals(name: str, *, debug: bool) -> Iterator[None]:
    """Turn what a command raises into one line on stderr and the exit code that fits.

    Args:
        name: The command's.
        debug: Show tracebacks instead.

    Yields:
        Nothing.

    Raises:
        typer.Exit: with status 1 where the inputs don't allow it, 130 where it was interrupted.
        GradfixError: instead of status 1, where ``debug`` asks for tracebacks.
        KeyboardInterrupt: instead of status 130, likewise.
    """
    try:
        yield
    except (GradfixError, KeyboardInterrupt) as error:
        if debug:
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        typer.echo("interrupted" if interrupted else f"gradfix {name}: {error}", err=True)
        raise typer.Exit(INTERRUPTED if interrupted else REFUSED) from None


def command(
    kind: type[Recipe], parent: typer.Typer = app
) -> Callable[[Callable[[Any, Console], None]], Callable[[Any, Console], None]]:
    """Register the decorated function as the command of a recipe, with the recipe's fields as options.

    Args:
        kind: The recipe class; its docstring is the command's help.
        parent: Of which it is a command, where the recipe's name has two words.

    Returns:
        The decorator, which gives the function back unchanged.
    """

    def register(job: Callable[[Any, Console], None]) -> Callable[[Any, Console], None]:
        def entry(**options: Any) -> None:
            as_json, debug = options.pop("json"), options.pop("debug")
            with options_as_on("command line"):
                try:
                    recipe = validate(kind, options, f"gradfix {kind.command}")
                except GradfixError as error:
                    typer.echo(str(error), err=True)
                    raise typer.Exit(WRONG_USAGE) from None
                with refusals(kind.command, debug=debug), Console(as_json) as console:
                    job(recipe, console)

        parameters = [_parameter(name, field) for name, field in kind.model_fields.items()]
        parameters.sort(
            key=lambda parameter: parameter.default is not inspect.Parameter.empty
        )  # required ones first
        parameters += [
            _flag("json", "print a machine-readable result on stdout"),
            _flag("debug", "show tracebacks"),
        ]
        entry.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        entry.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        parent.command(kind.command.split()[-1], help=inspect.getdoc(kind))(entry)
        JOBS[kind.command] = job
        return job

    return register


JOBS: dict[str, Callable[[Any, Console], None]] = {}
"""The registered commands' functions, for `gradfix run`."""


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    option: Any = typer.Option(
        "--" + name.replace("_", "-"), help=field.description, show_default=field.default is not None
    )
    if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("argument"):
        option = typer.Argument(help=field.description)
    required = field.default is PydanticUndefined and field.default_factory is None
    default = inspect.Parameter.empty if required else field.get_default(call_default_factory=True)
    annotation = field.annotation
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
    )


def _flag(name: str, description: str) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option(f"--{name}", help=description)],
    )
