"""Weights on disk, one tensor at a time."""

from gradfix.checkpoints.checkpoint import Checkpoint
from gradfix.checkpoints.names import NameMatch, match_names
from gradfix.checkpoints.reading.safetensors_file import SafetensorsFile
from gradfix.checkpoints.tensors import BLOCK, TensorSource, TensorSpec
from gradfix.checkpoints.writing.manifest import JSON, Manifest, read_manifest
from gradfix.checkpoints.writing.single import write_safetensors
from gradfix.checkpoints.writing.writer import CheckpointWriter

__all__ = [
    "BLOCK",
    "JSON",
    "Checkpoint",
    "CheckpointWriter",
    "Manifest",
    "NameMatch",
    "SafetensorsFile",
    "TensorSource",
    "TensorSpec",
    "match_names",
    "read_manifest",
    "write_safetensors",
]
