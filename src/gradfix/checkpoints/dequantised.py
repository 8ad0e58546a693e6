"""Quantised weights read as the numbers that their codes stand for, so that a quantised model can carry an adapter.

What is read here is what each library computes with in full precision: no library is needed. Legend: o outputs, i
inputs of a layer whose weight is [o, i].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gradfix.checkpoints.quantisation import (
    declared_method,
    declared_settings,
    packed_tensor,
    refuse_quantised,
)
from gradfix.checkpoints.reading.index import WeightFile
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError
from gradfix.text_files import parse_json

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""In which of the eight places of a word AWQ's gemm layout has the columns 0 to 7."""
_STATE = "weight.quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Codes:
    """One weight as codes.

    Attributes:
        shape: [o, i].
        parts: Names of the tensors that it is stored as.
        decode: Computes it in float32.
    """

    shape: tuple[int, ...]
    parts: tuple[str, ...]
    decode: Callable[[], Tensor]


class Dequantised:
    """The tensors of a quantised model, its codes decoded as they are read.

    Attributes:
        specs: Dtype and shape of each tensor as it is without quantisation; what was codes is float32.
        files: As the files' own.
        shared: As the files' own.
        notes: How many tensors are codes.
        decoded: How many tensors are codes.
    """

    def __init__(self, location: str, config: Mapping[str, Any], weights: WeightFile) -> None:
        """Find the codes.

        Args:
            location: What was opened, for messages.
            config: Its ``config.json``.
            weights: Its files.

        Raises:
            GradfixError: If its codes are of a format that isn't known here.
        """
        self._location, self._weights = location, weights
        settings = declared_settings(config)
        found: dict[str, Codes] = {}
        for name in weights.specs:
            for suffix, read in _FORMATS.items():
                if name.endswith(f".{suffix}"):
                    layer = name.removesuffix(f".{suffix}")
                    codes = read(_Layer(location, layer, weights, settings))
                    if codes is not None:
                        found[f"{layer}.weight"] = codes
        self._codes = found
        taken = {part for codes in found.values() for part in codes.parts}
        specs: dict[str, TensorSpec] = {}
        for name, spec in weights.specs.items():
            owner = f"{name.removesuffix('.qweight')}.weight" if name.endswith(".qweight") else name
            if owner in found:
                specs[owner] = TensorSpec(torch.float32, found[owner].shape)
            elif name not in taken:
                specs[name] = spec
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self.decoded = len(found)
        self.files: tuple[Path, ...] = weights.files
        self.shared: Mapping[str, str] = weights.shared
        self.notes: tuple[str, ...] = (
            *weights.notes,
            f"{location}: {len(found)} weights are codes, decoded as read",
        )
        self._last: tuple[str, Tensor] | None = None

    def fetch(self) -> None:
        """Bring here what is still on the Hub."""
        self._weights.fetch()

    def peek(self, name: str) -> bytes | None:
        """Give a few bytes of a tensor that is still on the Hub and no codes; None otherwise."""
        return None if name in self._codes else self._weights.peek(name)

    def read(self, name: str, rows: slice | None = None, *, out: Tensor | None = None) -> Tensor:
        """Read a tensor, or a contiguous range of its rows; the last decoded one is kept."""
        if name not in self._codes:
            return self._weights.read(name, rows, out=out)
        last = self._last
        if last is None or last[0] != name:
            try:
                last = self._last = name, self._codes[name].decode()
            except (RuntimeError, IndexError) as error:
                raise GradfixError(
                    f"{self._location}: {name}: its codes, scales and zero points don't fit one another; get the files "
                    "again"
                ) from error
        return (last[1] if rows is None else last[1][rows]).clone()


def dequantised(
    location: str, config: Mapping[str, Any], weights: WeightFile
) -> tuple[WeightFile, str | None]:
    """Read a model's codes as numbers; a model without any is given as it is.

    Args:
        location: What was opened, for messages.
        config: Its ``config.json``.
        weights: Its files.

    Returns:
        The weights, and how they are quantised; None for a model that is not.

    Raises:
        GradfixError: If it is quantised in a way that isn't known here.
    """
    if declared_method(config) is None and packed_tensor(config, weights.specs) is None:
        return weights, None
    decoded = Dequantised(location, config, weights)
    plain = {
        key: value for key, value in config.items() if not key.startswith(("quantization", "compression"))
    }
    refuse_quantised(location, plain if decoded.decoded else config, decoded.specs)
    return decoded, declared_method(config) or "its config.json doesn't say how"


@dataclass(frozen=True)
class _Layer:
    """The tensors of one layer."""

    location: str
    name: str
    weights: WeightFile
    settings: Mapping[str, Any] = field(repr=False)

    def has(self, part: str) -> bool:
        return f"{self.name}.{part}" in self.weights.specs

    def spec(self, part: str) -> TensorSpec:
        return self.weights.specs[f"{self.name}.{part}"]

    def read(self, part: str) -> Tensor:
        return self.weights.read(f"{self.name}.{part}")

    def codes(self, shape: tuple[int, ...], parts: tuple[str, ...], decode: Callable[[], Tensor]) -> Codes:
        return Codes(shape, tuple(f"{self.name}.{part}" for part in parts if self.has(part)), decode)

    def refusal(self, reason: str) -> GradfixError:
        return GradfixError(
            f"{self.location}: {self.name}: {reason}; dequantise the model with the library that quantised it and give "
            "that"
        )


def _words(layer: _Layer) -> Codes:
    """GPTQ and AWQ: codes packed into words of 32 bits, with a scale and a zero point for each group of inputs."""
    method = layer.settings.get("quant_method")
    bits = layer.settings.get("bits", layer.settings.get("w_bit"))
    if method not in ("gptq", "awq") or bits not in ((2, 4, 8) if method == "gptq" else (4,)):
        raise layer.refusal(f"qweight of {method or 'no named'} quantisation with {bits} bits is not read")
    if not layer.has("scales") or not layer.has("qzeros"):
        raise layer.refusal("expected scales and qzeros beside qweight")
    if any(len(layer.spec(part).shape) != 2 for part in ("qweight", "qzeros", "scales")):
        raise layer.refusal("expected qweight, qzeros and scales of two dimensions")
    packed, scales = layer.spec("qweight").shape, layer.spec("scales").shape
    each = 32 // bits
    if method == "awq":
        if str(layer.settings.get("version", "gemm")).lower() != "gemm":
            raise layer.refusal(f"AWQ's layout {layer.settings['version']!r} is not read, gemm is")
        inputs, outputs = packed[0], packed[1] * each
    else:
        inputs, outputs = packed[0] * each, packed[1]
    if (
        scales[1] != outputs
        or inputs % scales[0]
        or layer.spec("qzeros").shape != (scales[0], outputs // each)
    ):
        raise layer.refusal(f"qweight {list(packed)} and scales {list(scales)} don't fit {bits} bits")
    old = layer.settings.get("checkpoint_format", "gptq") == "gptq"
    if method == "gptq" and layer.settings.get("checkpoint_format", "gptq") not in ("gptq", "gptq_v2"):
        raise layer.refusal(f"checkpoint_format {layer.settings['checkpoint_format']!r} is not read")

    def decode() -> Tensor:
        zeros = _unpacked(layer.read("qzeros"), bits, 1)
        groups = torch.arange(inputs) // (inputs // scales[0])
        if method == "awq":
            places = torch.arange(outputs).view(-1, each)[:, torch.tensor(_AWQ_PLACES)].flatten()
            codes = _unpacked(layer.read("qweight"), bits, 1)[:, places]
            zeros = zeros[:, places]
        else:
            codes = _unpacked(layer.read("qweight"), bits, 0)
            zeros = zeros + 1 if old else zeros
            groups = layer.read("g_idx").long() if layer.has("g_idx") else groups
            if int(groups.min()) < 0:
                raise IndexError("a group below 0")
        weight: Tensor = (codes - zeros[groups]) * layer.read("scales").float()[groups]
        return weight.T.contiguous()

    return layer.codes((outputs, inputs), ("qweight", "qzeros", "scales", "g_idx"), decode)


def _unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """Take words of 32 bits apart along a dimension, the lowest bits first."""
    shifts = torch.arange(0, 32, bits)
    parts: Tensor = (words.long().unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (1 - dim))) & (2**bits - 1)
    return parts.flatten(dim, dim + 1).float()


def _bytes(layer: _Layer) -> Codes | None:
    """A weight that is codes itself: fp8 with scales, or bitsandbytes with 8 or 4 bits."""
    spec = layer.spec("weight")
    if spec.dtype == torch.int8 and layer.has("SCB"):
        if len(spec.shape) != 2 or layer.spec("SCB").shape != spec.shape[:1]:
            raise layer.refusal(f"SCB {list(layer.spec('SCB').shape)} beside a weight {list(spec.shape)}")

        def scaled() -> Tensor:
            return layer.read("weight").float() * (layer.read("SCB").float() / 127).unsqueeze(1)

        return layer.codes(spec.shape, ("weight", "SCB", "weight_format"), scaled)
    if spec.dtype == torch.float8_e4m3fn:
        return _fp8(layer, spec)
    states = [kind for kind in ("nf4", "fp4") if layer.has(f"{_STATE}{kind}")]
    if spec.dtype == torch.uint8 and states:
        return _four_bits(layer, f"{_STATE}{states[0]}")
    if spec.dtype.is_floating_point and spec.dtype.itemsize > 1:
        return None
    raise layer.refusal(f"weight holds {str(spec.dtype).removeprefix('torch.')} codes of an unknown kind")


def _fp8(layer: _Layer, spec: TensorSpec) -> Codes:
    """Numbers of 8 bits times a scale: of the tensor, of each output, or of each block."""
    name = next((name for name in ("weight_scale_inv", "weight_scale") if layer.has(name)), None)
    if name is None or len(spec.shape) != 2:
        raise layer.refusal("fp8 without weight_scale or weight_scale_inv is not read")
    scales = layer.spec(name).shape
    block = _sides(layer)
    per_tensor = layer.spec(name).numel == 1
    per_output = scales in ((spec.shape[0],), (spec.shape[0], 1))
    tiles = (
        None if not block else tuple(-(-size // side) for size, side in zip(spec.shape, block, strict=True))
    )
    if not per_tensor and scales != tiles and (tiles is not None or not per_output):
        raise layer.refusal(
            f"{name} {list(scales)} is no scale of the tensor, of each output, or of blocks of {block}"
        )

    def decode() -> Tensor:
        scale = layer.read(name).float()
        if per_tensor:
            scale = scale.reshape(1, 1)
        elif block is not None:
            rows, columns = (torch.arange(size) // side for size, side in zip(spec.shape, block, strict=True))
            scale = scale[rows][:, columns]
        else:
            scale = scale.reshape(-1, 1)
        return layer.read("weight").float() * scale

    return layer.codes(
        spec.shape, ("weight", name, "input_scale", "activation_scale", "input_scale_ub"), decode
    )


def _sides(layer: _Layer) -> tuple[int, int] | None:
    """Outputs and inputs of a block."""
    sides = layer.settings.get("weight_block_size")
    if not sides:
        return None
    if (
        not isinstance(sides, list)
        or len(sides) != 2
        or not all(isinstance(one, int) and one > 0 for one in sides)
    ):
        raise layer.refusal(f"weight_block_size {sides!r:.80} is no pair of sizes")
    return sides[0], sides[1]


def _four_bits(layer: _Layer, state_name: str) -> Codes:
    """Four bits of bitsandbytes: two codes a byte, the first in the high half, of a table; a scale for each block."""
    state = layer.read(state_name)
    if state.dtype != torch.uint8:
        raise layer.refusal(f"{state_name}: expected bytes")
    settings = parse_json(bytes(state.tolist()).decode("utf-8", "replace"), f"{layer.location}: {state_name}")
    if not isinstance(settings, dict) or not isinstance(settings.get("shape"), list):
        raise layer.refusal(f"{state_name}: expected shape and blocksize")
    shape, size = tuple(settings["shape"]), settings.get("blocksize")
    needed = ["weight.absmax", "weight.quant_map"]
    needed += ["weight.nested_quant_map"] if layer.has("weight.nested_absmax") else []
    if missing := [part for part in needed if not layer.has(part)]:
        raise layer.refusal(f"expected {missing[0]} beside weight")
    if (
        len(shape) != 2
        or not all(isinstance(side, int) and side > 0 for side in shape)
        or not isinstance(size, int)
    ):
        raise layer.refusal(f"{state_name}: expected shape and blocksize")
    numel, nested = shape[0] * shape[1], layer.has("weight.nested_absmax")
    outer_size, offset = settings.get("nested_blocksize"), settings.get("nested_offset")
    if not nested:
        outer_size, offset = size, 0.0
    if not isinstance(outer_size, int) or outer_size < 1 or not isinstance(offset, int | float):
        raise layer.refusal(f"{state_name}: expected nested_blocksize and nested_offset")
    if size < 1 or layer.spec("weight").numel != -(-numel // 2) or layer.spec("weight.quant_map").numel != 16:
        raise layer.refusal(f"{layer.spec('weight').numel} bytes for {list(shape)} codes of 4 bits")

    def decode() -> Tensor:
        packed = layer.read("weight").flatten()
        codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:numel].long()
        scales = layer.read("weight.absmax")
        if nested:
            outer = layer.read("weight.nested_absmax").float()
            outer = outer[torch.arange(scales.numel()) // outer_size]
            scales = layer.read("weight.nested_quant_map").float()[scales.long()] * outer + offset
        scales = scales.float()[torch.arange(numel) // size]
        return (layer.read("weight.quant_map").float()[codes] * scales).view(shape)

    parts = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
    return layer.codes(shape, (*parts, state_name), decode)


_FORMATS: Mapping[str, Callable[[_Layer], Codes | None]] = {"qweight": _words, "weight": _bytes}
"""By the name of the tensor with the codes."""
