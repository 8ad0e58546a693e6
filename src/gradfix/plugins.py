"""Functions of the user's own in place of what gradfix brings: masks, merge methods, alignments, tasks, metrics.

A plug-in is named by where it is, ``module:function``, or by the name that it was registered under (:func:`register`);
its own parameters, as its signature has them, follow after commas::

    my_masks:largest,share=0.1

That is one text, the same on the command line, in a recipe file and in Python. Naming a function runs its module, so a
recipe file can't do it by itself (:func:`gradfix.recipes.load_recipe`).
"""

import difflib
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import yaml
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from gradfix.errors import GradfixError, listed

Kind = Literal["mask", "merge", "alignment", "task", "metric"]

ARGUMENTS: dict[Kind, tuple[str, ...]] = {
    "mask": ("tau", "signal", "block"),
    "merge": ("blocks",),
    "alignment": ("source", "tuned", "target"),
    "task": (),
    "metric": ("prediction", "reference"),
}
"""What gradfix calls a plug-in of each kind with, by position."""

CODE_FIELDS = ("mask", "method", "methods", "align", "task", "metric")
"""The options that may name a plug-in; a recipe file that does so runs only where its user trusts it."""

_PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Plugin:
    """A function with its own parameters filled in.

    Attributes:
        name: The text that named it.
        function: The function, or a class.
        options: The parameters that were given, as the signature's types.
        facts: What it was registered with, such as what a mask needs.
    """

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """Call it.

        Args:
            *arguments: Those of its kind.
            **more: Further parameters, in place of those that were given.

        Returns:
            What it returns.

        Raises:
            GradfixError: if it raises anything: its own in one line, which names the plug-in.
        """
        try:
            return self.function(*arguments, **{**self.options, **more})
        except GradfixError:
            raise
        except Exception as error:  # code of the user's own may raise whatever there is
            raise GradfixError(f"{self.name}: raised {_told(error)}") from error


_registered: dict[tuple[Kind, str], Plugin] = {}


def register(kind: Kind, *, name: str | None = None, **facts: Any) -> Callable[[F], F]:
    """Register the decorated function as a plug-in of a kind, under its own name.

    Args:
        kind: ``"mask"``, ``"merge"``, ``"alignment"``, ``"task"`` or ``"metric"``.
        name: In place of the function's.
        **facts: What its kind can be told: ``needs`` of a mask, ``thins`` of a merge method.

    Returns:
        The decorator, which gives the function back unchanged.

    Raises:
        GradfixError: if there is no such kind.
    """
    if kind not in ARGUMENTS:
        raise GradfixError(f"register: {kind!r}: expected one of {', '.join(ARGUMENTS)}")

    def decorated(function: F) -> F:
        chosen = name or function.__name__.replace("_", "-")
        _registered[kind, chosen] = Plugin(chosen, function, {}, facts)
        return function

    return decorated


def registered(kind: Kind) -> list[str]:
    """List the plug-ins that were registered.

    Args:
        kind: Of which.

    Returns:
        Their names, sorted.
    """
    return sorted(name for of, name in _registered if of == kind)


def is_path(text: str) -> bool:
    """Tell whether a text names a function by ``module:function``, with or without parameters.

    Args:
        text: An option's value.

    Returns:
        Whether it has that form; nothing is imported.
    """
    return _PATH.fullmatch(text.partition(",")[0].strip()) is not None


def is_plugin(kind: Kind, text: str) -> bool:
    """Tell whether a text names a plug-in, by a path or by a registered name.

    Args:
        kind: What is wanted.
        text: An option's value.

    Returns:
        Whether :func:`find` would look for one; nothing is imported.
    """
    return is_path(text) or (kind, text.partition(",")[0].strip()) in _registered


def find(kind: Kind, text: str, *, known: Iterable[str] = ()) -> Plugin:
    """Find a plug-in and read its parameters.

    Args:
        kind: What is wanted.
        text: ``module:function`` or a registered name, with ``,parameter=value`` for each parameter of its own.
        known: What gradfix itself brings of the kind, for the message.

    Returns:
        The plug-in.

    Raises:
        GradfixError: if there is none of that name, its module can't be imported, or a parameter is not one of its own
            or not of its type.
    """
    name, *parts = (part.strip() for part in text.split(","))
    if _PATH.fullmatch(name):
        function = _imported(name)
        same = (each for (of, _), each in _registered.items() if of == kind and each.function is function)
        facts: Mapping[str, Any] = next((each.facts for each in same), {})
    elif (kind, name) in _registered:
        function, facts = _registered[kind, name].function, _registered[kind, name].facts
    else:
        raise GradfixError(
            f"{kind} {name!r}: unknown; choose from {', '.join([*known, *registered(kind)])}, or name a function of "
            f"yours as module:function"
        )
    options = _options(text, function, ARGUMENTS[kind], parts)
    return Plugin(text, function, options, facts)


def checked(kind: Kind, text: str, known: Iterable[str]) -> str:
    """Refuse a name that is neither gradfix's own nor a plug-in's, without importing anything.

    Args:
        kind: What is wanted.
        text: An option's value.
        known: What gradfix brings.

    Returns:
        The text.

    Raises:
        ValueError: naming what may be given.
    """
    known = list(known)
    if text not in known and not is_plugin(kind, text):
        raise ValueError(
            f"expected one of {', '.join([*known, *registered(kind)])}, or module:function, found {text!r}"
        )
    return text


def named(kind: Kind, value: str | Callable[..., Any]) -> str:
    """Give the text that names a plug-in, of what a function in Python was given.

    Args:
        kind: What is wanted.
        value: A text, or a function, which is then registered unless it can be found where it was defined.

    Returns:
        A text that :func:`find` takes in this process.

    Raises:
        GradfixError: if it has no name.
    """
    if isinstance(value, str):
        return value
    for (of, name), each in _registered.items():
        if of == kind and each.function is value:
            return name
    place = getattr(value, "__qualname__", None)
    if not callable(value) or not isinstance(place, str):
        raise GradfixError(
            f"{kind}: expected a name or a function, found a {type(value).__name__}; its parameters are given in a "
            "text: 'NAME,parameter=value'"
        )
    path = f"{value.__module__}:{place}"
    if is_path(path) and _imported_or_none(path) is value:
        return path
    register(kind)(value)
    return value.__name__.replace("_", "-")


def lasting(text: str) -> bool:
    """Tell whether a text names a plug-in that another process finds, too.

    Args:
        text: An option's value.

    Returns:
        Whether it is a path into a module that is not the program being run.
    """
    return is_path(text) and not text.startswith("__main__:") and "<locals>" not in text


def identity(kind: Kind, text: str) -> str:
    """Tell one version of a plug-in from another.

    Args:
        kind: What it is.
        text: Its name, with parameters.

    Returns:
        The SHA-256 of the text and of its source file; of the text alone where it has none.
    """
    function = find(kind, text).function
    try:
        content = Path(inspect.getfile(function)).read_bytes()
    except (TypeError, OSError):
        content = b""
    return hashlib.sha256(text.encode() + b"\0" + content).hexdigest()


def _imported_or_none(path: str) -> Callable[..., Any] | None:
    try:
        return _imported(path)
    except GradfixError:
        return None


def _imported(path: str) -> Callable[..., Any]:
    module, _, names = path.partition(":")
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        # A console script does not look where it is started, `python -m` does.
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise GradfixError(
                f"{path}: there is no module {error.name!r}: expected {error.name.replace('.', '/')}.py in {here}, in "
                "a folder of PYTHONPATH, or an installed package"
            ) from error
        raise GradfixError(f"{path}: its module can't be imported ({_told(error)})") from error
    except Exception as error:  # importing runs code of the user's own
        raise GradfixError(f"{path}: its module can't be imported ({_told(error)})") from error
    for name in names.split("."):
        if not hasattr(found, name):
            functions = [each for each, value in vars(found).items() if callable(value) and each[0] != "_"]
            near = difflib.get_close_matches(name, functions, 3) or functions
            raise GradfixError(
                f"{path}: {module} has no {name!r}; it has {listed(near, 5) or 'no functions'}"
            )
        found = getattr(found, name)
    if not callable(found):
        raise GradfixError(f"{path}: expected a function, found a {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def _options(
    text: str, function: Callable[..., Any], arguments: tuple[str, ...], parts: list[str]
) -> dict[str, Any]:
    """Read a plug-in's own parameters, in the types of its signature."""
    called = f"({', '.join(arguments)}, *, …)" if arguments else "(…)"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise GradfixError(f"{text}: its signature can't be read; give a function {called}") from error
    own = own_parameters(function, len(arguments))
    given: dict[str, Any] = {}
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise GradfixError(f"{text}: expected parameter=value after a comma, found {part!r}")
        if name not in own:
            raise GradfixError(f"{text}: has no parameter {name!r}; it has {', '.join(own) or 'none'}")
        given[name] = _converted(text, name, value, own[name])
    try:
        signature.bind(*arguments, **given)
    except TypeError as error:
        raise GradfixError(
            f"{text}: can't be called as {called}: {error}; its parameters are given as NAME,parameter=value"
        ) from error
    return given


def own_parameters(function: Callable[..., Any], arguments: int = 0) -> dict[str, Any]:
    """List the parameters that are a plug-in's own.

    Args:
        function: The function, or a class.
        arguments: How many come by position from gradfix.

    Returns:
        The type of each; ``inspect.Parameter.empty`` where neither annotation nor default tells it.
    """
    code = function.__init__ if inspect.isclass(function) else function
    try:
        hints = get_type_hints(code)
    except (NameError, TypeError, AttributeError):  # annotations may name what exists for type checkers alone
        hints = {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [each for each in inspect.signature(function).parameters.values() if each.kind in kinds]
    positional = [each for each in named if each.kind is kinds[0]][:arguments]
    types = {}
    for each in named:
        if each in positional:
            continue
        default = each.empty if each.default is each.empty or each.default is None else type(each.default)
        types[each.name] = hints.get(each.name, default)
    return types


def _converted(text: str, name: str, value: str, kind: Any) -> Any:
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    if kind is inspect.Parameter.empty:
        return read
    try:
        adapter = TypeAdapter(kind)
    except PydanticUserError:  # a type that pydantic can't check is the function's own affair
        return read
    # Text first as it stands: a class called 3 or no is a name where a name is wanted.
    for candidate in (value, read):
        try:
            return adapter.validate_python(candidate)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
    raise GradfixError(f"{text}: parameter {name}: {problem[:1].lower()}{problem[1:]}, found {value!r}")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
