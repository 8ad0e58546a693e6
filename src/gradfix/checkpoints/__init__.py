"""Weights on disk, one tensor at a time."""

from gradfix.checkpoints.checkpoint import Checkpoint
from gradfix.checkpoints.safetensors_file import SafetensorsFile
from gradfix.checkpoints.specs import BLOCK, TensorSource, TensorSpec

__all__ = [
    "BLOCK",
    "Checkpoint",
    "SafetensorsFile",
    "TensorSource",
    "TensorSpec",
]
