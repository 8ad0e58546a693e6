"""A command's options are its recipe's fields; what it raises becomes one line and an exit code."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gradfix._version import __version__
from gradfix.cli.console import Console
from gradfix.cli.help import Command, columns_help
from gradfix.errors import GradfixError, options_as_on
from gradfix.interrupts import InterruptsRaised
from gradfix.ranks import FailedElsewhereError
from gradfix.recipes import Recipe, TaskRecipe, recipes, validate
from gradfix.recipes.groups import GROUPS, group_of, ordered

DONE, REFUSED, WRONG_USAGE, UNEXPECTED, INTERRUPTED = 0, 1, 2, 70, 130
LONGEST_LINE = 2000
"""Letters of a message: names from files may have thousands."""

app = typer.Typer(
    name="gradfix",
    help="Move a fine-tune to a new release of its base model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gradfix {__version__}")
        raise typer.Exit


@app.callback()
def whole(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Move a fine-tune to a new release of its base model."""


@contextmanager
def refusals(name: str, *, debug: bool) -> Iterator[None]:
    """Turn what a command raises into one line on stderr and the exit code that fits.

    Args:
        name: The command's.
        debug: Show tracebacks instead.

    Yields:
        Nothing.

    Raises:
        typer.Exit: with status 1 where the inputs don't allow it, 130 where it was interrupted, 70 for an error that
            nobody foresaw.
        Exception: whatever it was instead, where ``debug`` asks for tracebacks.
        KeyboardInterrupt: likewise.
    """
    try:
        with InterruptsRaised():
            yield
    except typer.Exit:
        raise
    except FailedElsewhereError:
        raise typer.Exit(REFUSED) from None
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        text, status = _told(name, error)
        typer.echo(one_line(text), err=True)
        raise typer.Exit(status) from None


def _told(name: str, error: BaseException) -> tuple[str, int]:
    """Word the end of a command, and choose its exit status."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, GradfixError):
        return f"gradfix {name}: {error}", REFUSED
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return (
            f"gradfix {name}: {where}{error.strerror}: check the path, its permissions and the disk",
            REFUSED,
        )
    if isinstance(error, MemoryError):
        return f"gradfix {name}: out of memory: use a machine with more, or smaller inputs", REFUSED
    kind = type(error).__name__
    return f"gradfix {name}: unexpected {kind}: {error} (--debug shows where; please report it)", UNEXPECTED


def one_line(text: str) -> str:
    """Make a message one line that a terminal shows as it is: what files say may hold anything.

    Args:
        text: The message.

    Returns:
        It without control characters, and cut where it is longer than anyone reads.
    """
    text = " ".join(text.split())
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 1] + "…"


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
                    typer.echo(one_line(str(error)), err=True)
                    raise typer.Exit(WRONG_USAGE) from None
                with refusals(kind.command, debug=debug):
                    run_shared(recipe, as_json)

        parameters = [_parameter(kind, name, kind.model_fields[name]) for name in ordered(kind)]
        parameters += [
            _flag("json", "print a machine-readable result on stdout"),
            _flag("debug", "show tracebacks"),
        ]
        entry.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        entry.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        epilog = columns_help() if issubclass(kind, TaskRecipe) else None
        parent.command(
            kind.command.split()[-1],
            cls=Command,
            help=inspect.getdoc(kind),
            short_help=_summary(kind),
            epilog=epilog,
        )(entry)
        JOBS[kind.command] = job
        return job

    return register


def run_shared(recipe: Recipe, as_json: bool) -> None:
    """Run the command of a recipe, together with the other ranks where a launcher started several.

    Args:
        recipe: The validated options.
        as_json: Print a machine-readable result.

    Raises:
        typer.Exit: if this command can't be shared, on all ranks but the first.
        GradfixError: likewise, on the first.
    """
    from gradfix.ranks.launch import joined, place

    here = place()
    if here is not None and not recipe.shared:
        if here.rank:
            raise typer.Exit(REFUSED)
        raise GradfixError(
            f"runs in one process, and {here.size} were started; start it without the launcher "
            f"({', '.join(sorted(name for name, kind in recipes().items() if kind.shared))} share their work)"
        )
    facts = {"version": __version__, "command": recipe.command, **recipe.model_dump(mode="json")}
    with joined("options", facts) as group, Console(as_json, quiet=not group.first) as console:
        run_job(recipe, console)


def run_job(recipe: Recipe, console: Console) -> None:
    """Run the command of a recipe, unless it would write over what it reads, and push what it wrote.

    Args:
        recipe: The validated options.
        console: Where it talks.
    """
    output, inputs = getattr(recipe, "output", None), recipe.inputs()
    if output is not None and inputs:
        from gradfix.checkpoints.files import refuse_inside

        refuse_inside(output, inputs)
    if output is None or recipe.pushed_to is None:
        JOBS[recipe.command](recipe, console)
        return
    from gradfix.checkpoints.writing.publishing import pushing

    with pushing(recipe.pushed_to, output, console.say):
        JOBS[recipe.command](recipe, console)


JOBS: dict[str, Callable[[Any, Console], None]] = {}
"""The registered commands' functions, for `gradfix run`."""


def _summary(kind: type[Recipe]) -> str:
    """The first line of a recipe's docstring: the list of commands has a line each."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _parameter(kind: type[Recipe], name: str, field: FieldInfo) -> inspect.Parameter:
    spelled = name.replace("_", "-")
    extra: Any = field.json_schema_extra
    known = extra.get("known") if isinstance(extra, dict) else None
    option: Any = typer.Option(
        f"--{spelled}/--no-{spelled}" if field.default is True else f"--{spelled}",
        help=field.description,
        show_default=field.default is not None,
        rich_help_panel=group_of(kind, name),
    )
    if isinstance(extra, dict) and extra.get("argument"):
        option = typer.Argument(help=field.description)
    required = field.default is PydanticUndefined and field.default_factory is None
    default = inspect.Parameter.empty if required else field.get_default(call_default_factory=True)
    if isinstance(known, tuple):
        option.metavar = f"[{'|'.join(known)}|module:function]"
        option.autocompletion = _completing(known)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[_plain(field.annotation), option],
    )


def _plain(annotation: Any) -> Any:
    """A type without what validates it: typer knows only the types themselves."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _plain(parts[0])
    if get_origin(annotation) is list:
        return list[_plain(parts[0])]  # type: ignore[misc]
    if type(None) in parts:
        return _plain(next(part for part in parts if part is not type(None))) | None
    return annotation


def _completing(known: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


def _flag(name: str, description: str) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[
            bool, typer.Option(f"--{name}", help=description, rich_help_panel=list(GROUPS)[-1])
        ],
    )
