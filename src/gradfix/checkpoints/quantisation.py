"""Weights stored as codes (fp8, int8, nf4, GPTQ, AWQ …): recognised from headers and configs, and refused by name.

A quantised tensor holds codes that mean something only together with scales, zero points or codebooks stored beside
them. Codes can be subtracted and added like numbers, and the result is a wrong model that looks right.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gradfix.checkpoints.architecture import architecture_of
from gradfix.checkpoints.names import match_names
from gradfix.checkpoints.tensors import TensorSpec
from gradfix.errors import GradfixError

_CONFIG_KEYS = ("quantization_config", "compression_config")
_INTEGERS = frozenset(
    {torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64}
)
# Names under which libraries store codes as integers, by their last parts: plain linear weights (bitsandbytes, EETQ,
# fp8 tools), GPTQ and AWQ, compressed-tensors, HQQ, AQLM, gpt-oss's mxfp4, torchao, quanto.
_CODES = re.compile(
    r"(^|[._])(weight|qweight|qzeros|weight_packed|packed_weight|W_q|codes|blocks|qdata)$|\.weight[.:_]|_weight_qdata"
)
# The library that quantises by a method, where it isn't named as the method is.
_LIBRARIES = {
    "awq": "GPTQModel or AutoAWQ", "eetq": "eetq", "fbgemm_fp8": "transformers", "fp8": "transformers",
    "gptq": "GPTQModel", "mxfp4": "transformers", "quanto": "optimum-quanto",
}  # fmt: skip


def refuse_quantised(location: str, config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> None:
    """Refuse weights that are codes, before any is read.

    Args:
        location: What was opened, for the message.
        config: Its ``config.json``; empty if there is none.
        specs: Its tensors by name.

    Raises:
        GradfixError: If they are quantised, or of a number format that can't be added.
    """
    method, evidence = declared_method(config), packed_tensor(config, specs)
    if method is None and evidence is None:
        return
    library = _LIBRARIES.get(method or "", method or "the library that quantised it")
    if evidence is None:
        raise GradfixError(
            f"{location}: its config.json says it is quantised ({method}), though its tensors look like plain "
            "weights; remove quantization_config from config.json if they are, else give the model before quantisation"
        )
    name, spec = evidence
    kind = str(spec.dtype).removeprefix("torch.")
    if spec.dtype.is_complex:
        raise GradfixError(
            f"{location}: {name!r} holds complex numbers ({kind}); only real weights can be moved"
        )
    raise GradfixError(
        f"{location}: is quantised ({method or _method_of(specs)}): {name!r} holds {kind} codes, which can't be "
        f"added as weights; give the model before quantisation, or dequantise it with {library} "
        "(model.dequantize() in transformers) and give what save_pretrained writes"
    )


def declared_method(config: Mapping[str, Any]) -> str | None:
    """Read from a config how its model is quantised.

    Args:
        config: A model's ``config.json``.

    Returns:
        The method as the config names it, such as ``gptq``; None if it declares none.
    """
    found = _declared(config)
    if found is None:
        return None
    method = found.get("quant_method") or found.get("quant_algo") if isinstance(found, Mapping) else found
    return str(method or "unknown method")


def declared_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read from a config all that it says of its quantisation.

    Args:
        config: A model's ``config.json``.

    Returns:
        The settings; empty if it declares none.
    """
    found = _declared(config)
    return found if isinstance(found, Mapping) else {}


def _declared(config: Mapping[str, Any]) -> Any:
    for part in _parts(config):
        for key in _CONFIG_KEYS:
            if found := part.get(key):
                return found
    return None


def packed_tensor(
    config: Mapping[str, Any], specs: Mapping[str, TensorSpec]
) -> tuple[str, TensorSpec] | None:
    """Find a tensor that holds codes instead of weights.

    Args:
        config: The model's ``config.json``; its architecture is asked about integers of unknown names.
        specs: The tensors by name.

    Returns:
        The first such tensor; None where all are plain weights and buffers.
    """
    unknown = []
    for name, spec in specs.items():
        if spec.dtype.is_complex or (spec.dtype.is_floating_point and spec.dtype.itemsize == 1):
            return name, spec
        if spec.dtype in _INTEGERS and spec.numel > 1:
            if _CODES.search(name):
                return name, spec
            unknown.append(name)
    # An integer buffer (a mask, an index of positions) stands beside the weights, codes stand in their place.
    architecture = architecture_of(config) if unknown else None
    if architecture is None:
        return None
    rename = match_names(architecture.names, specs).rename
    absent = {spelled for name in architecture.names if (spelled := rename(name)) not in specs}
    expected = {rename(name) for name in architecture.names}
    for name in unknown:
        modules = name.split(".")[:-1]
        owners = {".".join(modules[: i + 1]) + ".weight" for i in range(len(modules))}
        if name in expected or owners & absent:
            return name, specs[name]
    return None


def _method_of(specs: Mapping[str, TensorSpec]) -> str:
    """Name the method by what it stores, for files without a config."""
    ends = {name.rsplit(".", 1)[-1] for name in specs}
    dtypes = {spec.dtype for spec in specs.values()}
    marks = (
        ("GPTQ", {"qweight", "g_idx"} <= ends),
        ("GPTQ or AWQ", "qweight" in ends),
        ("bitsandbytes int8", "SCB" in ends),
        ("bitsandbytes 4 bit", "absmax" in ends),
        ("compressed-tensors", "weight_packed" in ends),
        ("HQQ", "W_q" in ends),
        ("fp8", any(dtype.is_floating_point and dtype.itemsize == 1 for dtype in dtypes)),
    )
    return next((name for name, holds in marks if holds), "integers in place of weights")


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A config and those of the towers inside it."""
    yield config
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in _CONFIG_KEYS:
            yield from _parts(value)
