"""Under which heading the help of a command lists each option."""

from gradfix.recipes.base import Recipe

FIRST = "Options"
OTHERS = "Further options"
GROUPS: dict[str, tuple[str, ...]] = {
    "The data": (
        "split", "validation", "validation_split", "test_split", "unlabelled", "generate_inputs",
        "align_data", "sampling", "seeds", "column", "label", "configuration", "encoding", "retain",
    ),
    "The task": (
        "candidate", "prefix", "templates", "text_from", "max_length", "metric", "max_new_tokens", "beta", "strict",
        "head",
    ),
    "The method": (
        "space", "granularity", "alpha", "mask", "confidence", "vote", "steps", "vote_at", "votes_dtype", "align",
        "training", "best_on_test", "finetune_steps", "density", "coefficients", "order", "seed",
    ),
    "What is written": (
        "output_format", "rank", "energy", "whole", "dtype", "rounding", "shard_size", "examples", "overwrite",
        "resume", "restart", "push_to_hub", "track",
    ),
    "The run": (
        "processes", "batch_size", "device", "memory", "compute_dtype", "trust_remote_code", "trust_plugins", "json",
        "debug",
    ),
}  # fmt: skip
"""Headings, in their order, with the options below each, of whichever command."""

MATTER_FIRST: dict[str, tuple[str, ...]] = {
    "transport": (
        "source_base", "source_tuned", "target_base", "task", "support", "data", "samples_per_class", "test", "method",
        "output",
    ),
    "compare": (
        "source_base", "source_tuned", "target_base", "target_tuned", "task", "data", "test", "samples_per_class",
        "methods", "output",
    ),
    "votes": ("target_base", "task", "support", "data", "samples_per_class", "output", "source_base", "source_tuned"),
    "evaluate": ("model", "task", "data", "output"),
    "apply": ("source_base", "source_tuned", "task_vector", "target_base", "votes", "mask", "alpha", "output"),
    "merge": (
        "task_vector", "target_base", "task", "samples", "test", "method", "density", "votes", "alpha", "output",
    ),
}  # fmt: skip
"""The options that a first use needs, at most ten a command; of other commands those that must be given."""
MATTER_FIRST["check"] = MATTER_FIRST["transport"]


def ordered(kind: type[Recipe]) -> list[str]:
    """List a command's options as its help does.

    Args:
        kind: The recipe of the command.

    Returns:
        Fields: those that matter first in the order above, the others as the recipe has them.
    """
    first = [name for name in MATTER_FIRST.get(kind.command, ()) if name in kind.model_fields]
    return [*first, *(name for name in kind.model_fields if name not in first)]


def group_of(kind: type[Recipe], name: str) -> str:
    """Tell under which heading the help lists an option.

    Args:
        kind: The recipe of the command.
        name: The option's field.

    Returns:
        The heading.
    """
    if name in MATTER_FIRST.get(kind.command, ()) or kind.command not in MATTER_FIRST:
        return FIRST
    return next((group for group, names in GROUPS.items() if name in names), OTHERS)
