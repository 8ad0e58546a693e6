"""What is said of votes beside the counts, and how wide the counts are."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gradfix.checkpoints.fingerprint import combined_fingerprint
from gradfix.errors import GradfixError

VOTES_FORMAT = "gradfix-votes"
FORMAT_VERSION = 1
VOTE_MODES = ("majority", "mean")


@dataclass(frozen=True)
class VoteRecord:
    """What is said of votes beside the counts.

    Attributes:
        vote: ``"majority"`` (signs summed over samples) or ``"mean"`` (the sign of the summed gradient).
        samples: N, how many samples voted.
        sample_ids: One id a sample, in the order counted.
        dtype: Number format in which gradients were computed, as ``"float32"``.
        seed: Seed of the caller's draw of samples, where there is one.
        fingerprints: Parameter name to the fingerprint of the weights at which votes were counted.
        uncovered: Parameters that were asked for and got no gradient from any sample.
        plain: Parameters that the one-sample-at-a-time loop counted, with the reason.
    """

    vote: str
    samples: int
    sample_ids: tuple[str, ...] = ()
    dtype: str = "float32"
    seed: int | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    uncovered: tuple[str, ...] = ()
    plain: Mapping[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Write the record as the text entries of a safetensors header.

        Returns:
            Key to text.
        """
        return {
            "format": VOTES_FORMAT,
            "format_version": str(FORMAT_VERSION),
            "vote": self.vote,
            "samples": str(self.samples),
            "seed": json.dumps(self.seed),
            "dtype": self.dtype,
            "sample_ids": json.dumps(self.sample_ids),
            "fingerprint": combined_fingerprint(self.fingerprints),
            "fingerprints": json.dumps(dict(self.fingerprints)),
            "uncovered": json.dumps(self.uncovered),
            "plain": json.dumps(dict(self.plain)),
        }

    @classmethod
    def from_metadata(cls, found: Mapping[str, str], path: str | Path) -> "VoteRecord":
        """Read back what :meth:`to_metadata` wrote.

        Args:
            found: The text entries.
            path: The file they are from, for messages.

        Returns:
            The record.

        Raises:
            GradfixError: Where the entries are not those of votes, or of another version of the format.
        """
        if found.get("format") != VOTES_FORMAT:
            raise GradfixError(
                f"{path} holds no votes (metadata 'format' is {found.get('format')!r}); expected a file that "
                "Votes.save or `gradfix votes` wrote"
            )
        if found.get("format_version") != str(FORMAT_VERSION):
            raise GradfixError(
                f"{path} has votes format {found.get('format_version')}, this gradfix reads {FORMAT_VERSION}; count "
                "the votes again, or use the version of gradfix that wrote them"
            )
        try:
            return cls(
                vote=found["vote"],
                samples=int(found["samples"]),
                sample_ids=tuple(json.loads(found["sample_ids"])),
                dtype=found["dtype"],
                seed=json.loads(found["seed"]),
                fingerprints=dict(json.loads(found["fingerprints"])),
                uncovered=tuple(json.loads(found["uncovered"])),
                plain=dict(json.loads(found["plain"])),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise GradfixError(f"{path} has damaged metadata ({error!r}); count the votes again") from error


def counts_dtype(samples: int) -> torch.dtype:
    """Choose the narrowest integers that hold votes of N samples.

    Args:
        samples: N.

    Returns:
        int8 while N ≤ 127, int16 while N ≤ 32767, int32 beyond.
    """
    if samples <= torch.iinfo(torch.int8).max:
        return torch.int8
    return torch.int16 if samples <= torch.iinfo(torch.int16).max else torch.int32
