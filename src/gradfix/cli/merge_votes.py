"""``gradfix merge-votes``: add up votes that were counted apart."""

from gradfix.cli.command import command
from gradfix.cli.console import Console
from gradfix.errors import GradfixError
from gradfix.recipes import MergeVotesRecipe


@command(MergeVotesRecipe)
def merge_votes(recipe: MergeVotesRecipe, console: Console) -> None:
    """Write one votes file of several."""
    from gradfix.checkpoints.writing.atomic import refuse_taken
    from gradfix.transport.record import votes_facts
    from gradfix.votes import Votes

    refuse_taken(recipe.output, overwrite=recipe.overwrite)
    first, *others = recipe.votes
    whole = Votes.load(first)
    for path in others:
        try:
            whole = whole + Votes.load(path)
        except GradfixError as error:
            raise GradfixError(f"{path}: {error}") from error
    whole.save(recipe.output, overwrite=recipe.overwrite)
    facts = votes_facts(whole)
    console.say(f"wrote {recipe.output}: {whole!r}, {facts.tie_rate:.1%} tied")
    console.result({"output": str(recipe.output), **facts.plain()})
