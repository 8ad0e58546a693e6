"""Tiny models as quantising libraries save them, by formulas of their own."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Packed = dict[str, Tensor]
"""The tensors of a layer by the ends of their names."""


def packed_words(codes: Tensor, dim: int, places: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Put eight codes of 4 bits into each word: the one at ``places[k]`` of its eight is the k-th from below."""
    words = torch.zeros(
        [size // (8 if axis == dim else 1) for axis, size in enumerate(codes.shape)], dtype=torch.int64
    )
    for low, place in enumerate(places):
        words |= codes.long().index_select(dim, torch.arange(place, codes.shape[dim], 8)) << (4 * low)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def gptq(weight: Tensor) -> tuple[Packed, Tensor, dict[str, object]]:
    """Groups of 8 inputs in an order of their own; zero points are stored one too low."""
    outputs, inputs = weight.shape
    generator = torch.Generator().manual_seed(0)
    group = torch.randperm(inputs, generator=generator) // 8
    scales = torch.rand(inputs // 8, outputs, generator=generator).half() * 0.1 + 0.05
    zeros = torch.randint(1, 16, (inputs // 8, outputs), generator=generator)
    codes = (weight.T / scales.float()[group] + zeros[group]).round().clamp(0, 15)
    dense = (codes - zeros[group]) * scales.float()[group]
    parts = {
        "qweight": packed_words(codes, 0),
        "qzeros": packed_words(zeros - 1, 1),
        "scales": scales,
        "g_idx": group.int(),
    }
    return parts, dense.T, {"quant_method": "gptq", "bits": 4, "group_size": 8, "checkpoint_format": "gptq"}


def awq(weight: Tensor) -> tuple[Packed, Tensor, dict[str, object]]:
    """Columns of each eight in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    outputs, inputs = weight.shape
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(inputs // 8, outputs, generator=generator).half() * 0.1 + 0.05
    zeros = torch.randint(0, 16, (inputs // 8, outputs), generator=generator)
    group = torch.arange(inputs) // 8
    codes = (weight.T / scales.float()[group] + zeros[group]).round().clamp(0, 15)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    parts = {
        "qweight": packed_words(codes, 1, order),
        "qzeros": packed_words(zeros, 1, order),
        "scales": scales,
    }
    settings: dict[str, object] = {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"}
    return parts, ((codes - zeros[group]) * scales.float()[group]).T, settings


def fp8(weight: Tensor) -> tuple[Packed, Tensor, dict[str, object]]:
    """Blocks of 12 × 12, the last ones cut off."""
    tiles = [-(-side // 12) for side in weight.shape]
    scales = torch.rand(*tiles, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.005
    spread = torch.kron(scales, torch.ones(12, 12))[: weight.shape[0], : weight.shape[1]]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    settings: dict[str, object] = {"quant_method": "fp8", "weight_block_size": [12, 12]}
    return {"weight": codes, "weight_scale_inv": scales}, codes.float() * spread, settings


def int8(weight: Tensor) -> tuple[Packed, Tensor, dict[str, object]]:
    """bitsandbytes: the largest of each row is 127."""
    largest = weight.abs().amax(1)
    codes = (weight / largest.unsqueeze(1) * 127).round().to(torch.int8)
    parts = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    settings: dict[str, object] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return parts, codes.float() * largest.unsqueeze(1) / 127, settings


def nf4(weight: Tensor) -> tuple[Packed, Tensor, dict[str, object]]:
    """bitsandbytes with a table, blocks of 64, and scales that are codes as well."""
    table = torch.linspace(-1, 1, 16)
    blocks = weight.flatten().view(-1, 64)
    outer_table = torch.linspace(0, 1, 256)
    absmax = blocks.abs().amax(1)
    offset, outer = 0.25, float((absmax - 0.25).abs().amax())
    inner = ((absmax - offset).clamp(0) / outer * 255).round().to(torch.uint8)
    scales = outer_table[inner.long()] * outer + offset
    codes = ((blocks / scales.unsqueeze(1)).unsqueeze(-1) - table).abs().argmin(-1).to(torch.uint8).flatten()
    state = {
        "blocksize": 64, "shape": list(weight.shape), "nested_blocksize": 256, "nested_offset": offset,
        "dtype": "float32", "quant_type": "nf4",
    }  # fmt: skip
    parts = {
        "weight": (codes[::2] << 4 | codes[1::2]).unsqueeze(1),
        "weight.absmax": inner,
        "weight.quant_map": table,
        "weight.nested_absmax": torch.tensor([outer]),
        "weight.nested_quant_map": outer_table,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }
    dense = (table[codes.long()].view(-1, 64) * scales.unsqueeze(1)).view(weight.shape)
    return parts, dense, {"quant_method": "bitsandbytes", "load_in_4bit": True}


FORMATS: dict[str, Callable[[Tensor], tuple[Packed, Tensor, dict[str, object]]]] = {
    "gptq": gptq,
    "awq": awq,
    "fp8": fp8,
    "int8": int8,
    "nf4": nf4,
}


def quantise(model: Path, output: Path, method: str, layers: str = "proj") -> Path:
    """Save a model twice: with codes, and beside it (``.dense``) with the numbers that they stand for."""
    plain = load_file(model / "model.safetensors")
    stored: Packed = {}
    dense: Packed = {}
    settings: dict[str, object] = {}
    for name, weight in plain.items():
        if layers in name and name.endswith(".weight"):
            parts, dense[name], settings = FORMATS[method](weight.float())
            stored |= {
                f"{name.removesuffix('.weight')}.{part}": value.contiguous() for part, value in parts.items()
            }
        else:
            stored[name] = dense[name] = weight
    twin = output.with_suffix(".dense")
    for folder, tensors in ((output, stored), (twin, dense)):
        folder.mkdir(parents=True)
        for file in model.iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (output / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return output
