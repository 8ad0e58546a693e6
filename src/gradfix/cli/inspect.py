"""``gradfix inspect``: what is in a file."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.recipes import InspectRecipe


@command(InspectRecipe)
def inspect(recipe: InspectRecipe, console: Console) -> None:
    """Print facts of the whole, and a line a block of the network; `--json` has each tensor."""
    from rich.table import Table
    from rich.text import Text

    from gradfix.transport.inspection import by_block, fact_words
    from gradfix.transport.inspection import inspect as look

    found = look(recipe.file)
    console.answer(f"{found.path}: {found.kind}")
    for name, fact in found.facts.items():
        shown = fact_words(fact)
        if shown:
            console.answer(f"  {name}: {shown}")
    blocks = by_block(found.tensors)
    keys = [key for key in _COLUMNS if any(block.value(key) is not None for block in blocks)]
    table = Table("layer", "tensors", "elements", *(_COLUMNS[key] for key in keys))
    for block in blocks:
        cells = [_number(key, block.value(key)) for key in keys]
        table.add_row(Text(block.name), str(block.tensors), f"{block.elements:,}", *cells)
    console.answer_table(table)
    if found.advice:
        console.say(found.advice)
    console.result(found.to_json())


_COLUMNS = {"norm": "norm", "kept": "kept", "norm_kept": "norm kept", "ties": "ties", "margin": "margin"}


def _number(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if key.startswith("norm") else f"{value:.1%}"
