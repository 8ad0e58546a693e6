"""Three related tiny models on disk, as a user has them: old base, its fine-tune, new base; and votes for the last."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gradfix.checkpoints.fingerprint import fingerprints
from gradfix.votes import Votes
from gradfix.votes.metadata import VoteRecord
from tests.models import (
    tiny_bert,
    tiny_clip,
    tiny_distilbert,
    tiny_gpt2,
    tiny_llama,
    tiny_qwen2,
    tiny_roberta,
    tiny_t5,
    tiny_vit,
)

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "bert": tiny_bert,
    "roberta": tiny_roberta,
    "distilbert": tiny_distilbert,
    "t5": tiny_t5,
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "qwen2": tiny_qwen2,
    "clip": tiny_clip,
    "vit": tiny_vit,
}


@dataclass(frozen=True)
class Triple:
    """Directories of θ_A, θ_A^ft and θ_B, and the class that loads them."""

    base: Path
    tuned: Path
    target: Path
    kind: type[nn.Module]

    def load(self, directory: Path) -> nn.Module:
        return self.kind.from_pretrained(directory).eval()


def perturbed(model: nn.Module, scale: float, seed: int) -> nn.Module:
    """Add seeded noise to every parameter, in place, as training would change it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.dtype), alpha=scale)
    return model


def save_triple(
    family: str,
    root: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "5GB",
    **settings: object,
) -> Triple:
    """Write a triple of one family: the target is another seed, so another pre-training."""
    build = FAMILIES[family]
    models = {
        "base": build(seed=0, **settings),
        "tuned": perturbed(build(seed=0, **settings), 1e-2, seed=1),
        "target": build(seed=2, **settings),
    }
    for name, model in models.items():
        model.to(dtype).save_pretrained(root / name, max_shard_size=shard_size)
    return Triple(root / "base", root / "tuned", root / "target", type(models["base"]))


def random_votes(model: nn.Module, samples: int = 5, seed: int = 0) -> Votes:
    """Votes that a fair coin cast, ties included, for every parameter of the model."""
    generator = torch.Generator().manual_seed(seed)
    counts = {
        name: torch.randint(-samples, samples + 1, parameter.shape, generator=generator, dtype=torch.int8)
        for name, parameter in model.named_parameters()
    }
    record = VoteRecord(
        "majority", samples, tuple(map(str, range(samples))), fingerprints=fingerprints(model, counts)
    )
    return Votes(counts, record)
