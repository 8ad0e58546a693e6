"""Weights on disk, one tensor at a time."""

from gradfix.checkpoints.safetensors_file import SafetensorsFile
from gradfix.checkpoints.specs import BLOCK, TensorSource, TensorSpec

__all__ = [
    "BLOCK",
    "SafetensorsFile",
    "TensorSource",
    "TensorSpec",
]
