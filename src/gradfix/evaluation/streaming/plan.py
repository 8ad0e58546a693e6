"""How much memory a model needs in memory whole, and block by block: from headers alone, before anything is loaded.

Index letters: ``T`` tokens of a batch (samples times their length). A matrix of R rows and C columns that meets T
tokens leaves its input, T·C numbers, and its output's gradient, T·R numbers: that is what activations are estimated by.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError
from gradfix.evaluation.streaming.device import (
    computes_natively,
    copies_of_votes,
    copies_of_weights,
    free_memory,
    room_for_products,
)
from gradfix.ranks import Alone, ranks
from gradfix.votes.fast.verification import FEWEST

USUAL_LENGTH = 512
"""Tokens of a sample that are reckoned with where nothing limits them: most are shorter, and padded to the longest."""

SHARE = 0.85
"""Of the memory that is free, what may be used."""

_BLOCK = re.compile(r"^(.*?\.\d+)\.")
SCORES = 3
"""Copies of the head's scores in float32 that a loss makes: as they are, their logarithms, their gradient."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a model needs.

    Attributes:
        limit: Bytes that may be used.
        resident: Bytes by part with all weights in memory.
        streamed: The same with one block's.
        scratch: Bytes of kept inputs for which there is no memory: they go into a file.
        products: Bytes of what products gave, kept in a file so that they need not be computed again.
        batch: Samples that run through a block at once.
        blocks: How many there are.
        read: Bytes read from the checkpoint a count, where it is streamed: each weight twice.
    """

    limit: int
    resident: Mapping[str, int]
    streamed: Mapping[str, int]
    scratch: int
    products: int
    batch: int
    blocks: int
    read: int

    @property
    def streams(self) -> bool:
        """Whether the model must be fetched block by block."""
        return sum(self.resident.values()) > self.limit

    @property
    def kept(self) -> int:
        """Bytes that inputs of blocks may take."""
        return max(0, self.limit - sum(self.streamed.values()) + self.streamed[KEPT])

    def refuse(self, location: str) -> None:
        """Refuse a model of which not even one block fits.

        Args:
            location: The model's, for the message.

        Raises:
            GradfixError: with the figures.
        """
        needed = sum(self.streamed.values())
        if self.streams and needed > self.limit:
            parts = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in self.streamed.items() if size)
            raise GradfixError(
                f"{location}: block by block it needs {needed / 1e9:.2f} GB for one sample at a time ({parts}), and "
                f"{self.limit / 1e9:.2f} GB may be used; give more with --memory, or shorter samples with --max-length"
            )


KEPT = "inputs kept of all blocks"


def plan_memory(
    target: Checkpoint,
    *,
    voting: Collection[str],
    memory: str | int = "auto",
    compute_dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
    length: int | None = None,
    samples: int | None = None,
) -> MemoryPlan:
    """Estimate what a count of votes at a model needs.

    Args:
        target: θ_B.
        voting: The target's tensors that τ changes.
        memory: Bytes that may be used; ``auto`` for most of what is free.
        compute_dtype: Number format of the computation.
        device: Where to compute: its memory counts.
        batch_size: Samples a pass.
        length: Tokens of the longest sample; the model's context if None, but at most 512.
        samples: How many will vote; as many as are in a batch if None.

    Returns:
        The plan.
    """
    blocks: dict[str, dict[str, TensorSpec]] = defaultdict(dict)
    outside: dict[str, TensorSpec] = {}
    for name, spec in target.specs.items():
        if not spec.dtype.is_floating_point:
            continue
        found = _BLOCK.match(name)
        (blocks[found[1]] if found else outside)[name] = spec
    largest = max(blocks.values(), key=_elements, default={})
    item = compute_dtype.itemsize
    table = max(outside.values(), key=lambda spec: spec.numel, default=TensorSpec(torch.float32, (0, 0)))
    vocabulary = table.shape[0] if len(table.shape) == 2 else 0
    length = length or usual_length(target.config)
    device = torch.device(device)

    def activations(specs: Mapping[str, TensorSpec], samples: int) -> int:
        sides = sum(
            spec.shape[0] + spec.numel // spec.shape[0] for spec in specs.values() if len(spec.shape) > 1
        )
        return sides * samples * length * item

    def scores(samples: int) -> int:
        # Only a head over the vocabulary has scores for each token.
        return samples * length * vocabulary * item if _scores_tokens(target.config) else 0

    def of_loss(samples: int) -> int:
        # It is computed in float32, beside scores in the model's own format where that is another one.
        copies = SCORES * torch.float32.itemsize // item
        return scores(samples) * (copies if compute_dtype == torch.float32 else copies + 1)

    def voted(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        return {name: spec for name, spec in specs.items() if name in voting}

    def gradient(specs: Mapping[str, TensorSpec]) -> int:
        # Verified, a parameter is handed its gradient of one sample as a whole, once.
        return item * max((spec.numel for spec in voted(specs).values()), default=0)

    everything = {name: spec for specs in blocks.values() for name, spec in specs.items()}
    resident = {
        "weights": item * (_elements(everything) + _elements(outside)),
        "votes": max(_elements(voted(target.specs)), gradient(target.specs)),
        "activations": activations(everything, batch_size) + of_loss(batch_size),
    }
    limit = usable_memory(device) if memory == "auto" else int(memory)
    width = min(table.shape[-1] if table.shape else 0, 2**16)
    one = (samples or batch_size) * length * width * item

    def streamed(samples: int) -> dict[str, int]:
        few = min(samples, FEWEST)
        counted = [  # of a unit: its votes and activations
            (copies_of_votes(device) * _elements(voted(largest)), activations(largest, samples)),
            (gradient(largest), activations(largest, few)),
            (max((spec.numel for spec in voted(outside).values()), default=0), of_loss(samples)),
            (gradient(outside), scores(samples) + of_loss(few)),
        ]
        votes, activated = max(counted, key=sum)
        return {
            "one block's weights": copies_of_weights(device) * item * max(_elements(largest), table.numel),
            "its votes, or a gradient while its rules are verified": votes,
            "its activations": activated,
            KEPT: one,
        }

    batch = max(
        1, bisect_right(range(1, batch_size + 1), limit, key=lambda samples: sum(streamed(samples).values()))
    )
    parts = streamed(batch)
    # The inputs of one block at least are in memory, all others in a file if need be.
    parts[KEPT] = max(one, min(one * (len(blocks) + 1), limit - sum(parts.values()) + one))
    read = 2 * sum(spec.nbytes for specs in (outside, *blocks.values()) for spec in specs.values())
    scratch = one * (len(blocks) + 1) - parts[KEPT]
    outputs = sum(spec.shape[0] for spec in voted(everything).values() if len(spec.shape) > 1)
    products = min(outputs * (samples or batch_size) * length * item, room_for_products(device))
    return MemoryPlan(limit, resident, parts, scratch, products, batch, len(blocks), read)


def compute_dtype_of(
    target: Checkpoint, asked: str, device: str | torch.device, *, adapter: bool = False
) -> torch.dtype:
    """Choose the number format of the computation.

    Args:
        target: θ_B.
        asked: ``auto``, or a format.
        device: Where to compute.
        adapter: Whether it is moved in the coordinates of an adapter, whose votes are on few numbers.

    Returns:
        What was asked; for ``auto`` the format of most stored weights, where the device computes with it natively, else
        float32, as beside an adapter.
    """
    if adapter and asked == "auto":
        return torch.float32
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    sizes: dict[torch.dtype, int] = defaultdict(int)
    for spec in target.specs.values():
        if spec.dtype.is_floating_point:
            sizes[spec.dtype] += spec.numel
    stored = max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
    everywhere = all(ranks().gather("number format", computes_natively(torch.device(device), stored)))
    return stored if everywhere else torch.float32


def usable_memory(device: str | torch.device) -> int:
    """Tell how much memory may be used.

    Args:
        device: Of the model.

    Returns:
        Bytes: most of what is free on the device, or of what this process may still have. Ranks on one machine share
        it, and all ranks hold the model in the same way: as it fits where there is the least.
    """
    return _usable_memory(torch.device(device), ranks())


@lru_cache(maxsize=8)  # one answer a job: all of its models are held in the same way
def _usable_memory(place: torch.device, group: Alone) -> int:
    here = max(0, int(SHARE * free_memory(place)))
    return min(group.gather("memory", here if place.type == "cuda" else here // group.on_host))


def usual_length(config: Mapping[str, Any]) -> int:
    """Tell how many tokens a sample is reckoned with.

    Args:
        config: The model's configuration.

    Returns:
        Patches of an image; else those of the context, but at most 512.
    """
    vision = config.get("vision_config") or config
    image, patch = vision.get("image_size"), vision.get("patch_size")
    if isinstance(image, int) and isinstance(patch, int) and patch:
        return (image // patch) ** 2 + 1
    context = (config.get("text_config") or config).get("max_position_embeddings")
    return min(context, USUAL_LENGTH) if isinstance(context, int) and context > 0 else USUAL_LENGTH


def _scores_tokens(config: Mapping[str, Any]) -> bool:
    kinds = config.get("architectures") or []
    return any(part in str(kind) for kind in kinds for part in ("LM", "ForConditionalGeneration"))


def _elements(specs: Mapping[str, TensorSpec]) -> int:
    return sum(spec.numel for spec in specs.values())
