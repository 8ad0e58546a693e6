"""Which parts of a model are fetched together: its blocks, and what owns weights outside of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from gradfix.errors import GradfixError


@dataclass(frozen=True)
class Slot:
    """A place in a module where a parameter is.

    Attributes:
        owner: The module.
        attribute: The parameter's name in it.
        relative: Its name from the unit on.
        name: The parameter's name in the model: the first one, of a tied parameter that has several.
    """

    owner: nn.Module
    attribute: str
    relative: str
    name: str


@dataclass(eq=False)
class Unit:
    """A module whose weights are there while it runs.

    Attributes:
        name: The module's name in the model.
        module: It.
        block: Whether it is one of a list of like blocks; otherwise it is what stands before, between or after them.
        slots: Its parameters.
        kind: What it has in common with the other blocks of its list: class, names and shapes.
    """

    name: str
    module: nn.Module
    block: bool
    slots: Sequence[Slot] = field(repr=False)
    kind: object = field(repr=False)

    @property
    def names(self) -> Sequence[str]:
        """The model's names of its parameters, each once."""
        return list(dict.fromkeys(slot.name for slot in self.slots))


@dataclass(frozen=True)
class Division:
    """A model in units.

    Attributes:
        units: In the order of the model.
        resident: Parameters outside of all units: a module that contains blocks owns them itself. They are small and
            stay in memory.
    """

    units: Sequence[Unit]
    resident: Sequence[str]


def divide(model: nn.Module) -> Division:
    """Divide a model into what is fetched together.

    Blocks are the children of the outermost ``ModuleList``s. Outside of them, each module that owns a parameter is a
    unit with all that is inside it, unless blocks are.

    Args:
        model: Any module; its parameters may be on the meta device.

    Returns:
        The units.

    Raises:
        GradfixError: if the model has no list of blocks.
    """
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    blocks: dict[nn.Module, str] = {}
    lists: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not _inside(name, lists):
            lists.append(name)
            for number, child in enumerate(module):
                if next(child.parameters(), None) is not None:
                    blocks.setdefault(child, f"{name}.{number}")
    if not blocks:
        raise GradfixError(
            f"{type(model).__name__}: has no list of blocks (nn.ModuleList) that could be fetched one by one; it must "
            "be held in memory: give --memory a size that it fits in"
        )
    containers = {module for module in model.modules() if any(part in blocks for part in module.modules())}
    chosen: dict[nn.Module, tuple[str, bool]] = {module: (name, True) for module, name in blocks.items()}
    taken = {part for module in blocks for part in module.modules()}
    for name, module in model.named_modules():
        if module in taken or module in containers or not any(True for _ in module.parameters(recurse=False)):
            continue
        chosen[module] = name, False
        taken.update(module.modules())
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    units = [_unit(module, name, block, canonical) for module, (name, block) in chosen.items()]
    units.sort(key=lambda unit: places.get(unit.name, len(places)))
    held = {slot.name for unit in units for slot in unit.slots}
    return Division(units, [name for name in canonical.values() if name not in held])


def _inside(name: str, lists: Iterable[str]) -> bool:
    return any(name.startswith(f"{outer}.") for outer in lists)


def _unit(module: nn.Module, name: str, block: bool, canonical: dict[int, str]) -> Unit:
    slots = []
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for attribute, parameter in owner.named_parameters(recurse=False):
            relative = f"{prefix}.{attribute}" if prefix else attribute
            slots.append(Slot(owner, attribute, relative, canonical[id(parameter)]))
    shapes = tuple((slot.relative, tuple(getattr(slot.owner, slot.attribute).shape)) for slot in slots)
    return Unit(name, module, block, slots, (type(module), shapes))
