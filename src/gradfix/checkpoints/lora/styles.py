"""Adapters without a configuration, by their keys alone: those of kohya's trainers and of diffusers.

kohya writes a layer's name with ``_`` for every dot (``lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight``)
and an ``alpha`` beside the factors; diffusers writes the name after the part of the pipeline
(``unet.down_blocks.0.attentions.0.proj_in.lora_A.weight``). Without an alpha the product counts as it is.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gradfix.checkpoints.lora.config import LoraConfig
from gradfix.checkpoints.lora.keys import AdapterKeys, Factors
from gradfix.checkpoints.reading.index import WeightFile
from gradfix.errors import GradfixError, listed
from gradfix.text_files import parse_json

_FACTOR = re.compile(
    r"(?:\.lora_(?P<plain>down|up|A|B)|[._]lora(?:_linear_layer)?\.(?P<old>down|up))\.weight$"
)
_FLAT = re.compile(r"^lora_(?:unet|te\d?|transformer|prior_unet|prior_te)_")
_PARTS = (
    "unet",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "transformer",
    "prior",
    "diffusion_model",
)
_UNKNOWN = re.compile(
    r"\.(?:hada_\w+|lokr_\w+|lora_mid|dora_scale|oft_\w+|diff(?:_b)?)(?:\.weight)?$|lora_magnitude"
)
_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)$")


@dataclass(frozen=True)
class FileSettings(LoraConfig):
    """Ranks and scalings as the tensors themselves say them, by module."""

    scalings: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank of a module."""
        return self.ranks[module]

    def scaling(self, module: str) -> float:
        """Alpha over rank; 1 without an alpha."""
        return self.scalings[module]


def has_factors(names: Iterable[str]) -> bool:
    """Tell whether a file holds low-rank factors rather than weights.

    Args:
        names: Its tensors'.

    Returns:
        True if most are named as factors.
    """
    found = [bool(_FACTOR.search(name) or name.endswith(".alpha")) for name in names]
    return 2 * sum(found) > len(found)


def styled(path: Path, adapter: WeightFile, base: Iterable[str]) -> tuple[AdapterKeys, FileSettings]:
    """Sort the tensors of an adapter by the layers of the base that they change.

    Args:
        path: The file, for messages.
        adapter: Its tensors.
        base: Names of the base's weights.

    Returns:
        The factors by module, those without a place under the name that the file has; and their scalings.

    Raises:
        GradfixError: If a tensor is of no known kind, or a layer lacks one of its factors.
    """
    if any(name.startswith("base_model.") for name in adapter.specs):
        raise GradfixError(
            f"{path}: is an adapter of peft, whose scaling is in its adapter_config.json: give the folder with both"
        )
    modules: dict[str, Factors] = {}
    alphas: dict[str, str] = {}
    strange = [name for name in adapter.specs if _UNKNOWN.search(name)]
    for key in adapter.specs:
        factor = _FACTOR.search(key)
        if factor is not None:
            factors = modules.setdefault(key[: factor.start()], Factors())
            if (factor["plain"] or factor["old"]) in ("down", "A"):
                factors.down = key
            else:
                factors.up = key
        elif key.endswith(".alpha"):
            alphas[key.removesuffix(".alpha")] = key
        elif key not in strange:
            strange.append(key)
    if strange:
        raise GradfixError(
            f"{path}: {listed(strange, 3)}: is of no kind that is supported, which are lora_down and lora_up, lora_A "
            "and lora_B, and alpha; merge the adapter with the program that trained it"
        )
    found = AdapterKeys()
    ranks: dict[str, int] = {}
    scalings: dict[str, float] = {}
    places = _Places(base)
    for name, factors in modules.items():
        if not factors.down or not factors.up:
            raise GradfixError(f"{path}: {name!r}: expected two factors, found one: save the adapter again")
        module = places.find(name)
        rank = adapter.specs[factors.down].shape[0]
        found.modules[module], ranks[module] = factors, rank
        if name in alphas:
            scalings[module] = float(adapter.read(alphas[name])) / rank
        else:
            scalings[module] = _described(path, adapter, name)
    settings = FileSettings(
        path=path,
        rank=1,
        alpha=1.0,
        ranks=ranks,
        alphas={},
        root=False,
        transposed=False,
        dora=False,
        tied=False,
        generates=False,
        base=(None, None),
        scalings=scalings,
    )
    return found, settings


def _described(path: Path, adapter: WeightFile, name: str) -> float:
    """The scaling that diffusers notes in the file's header for each part of a pipeline; 1 where it notes none."""
    noted = getattr(adapter, "metadata", {}).get("lora_adapter_metadata")
    if noted is None:
        return 1.0
    settings = parse_json(noted, f"{path}: metadata 'lora_adapter_metadata'")
    part = name.partition(".")[0]
    if (
        not isinstance(settings, dict)
        or settings.get(f"{part}.alpha_pattern")
        or settings.get(f"{part}.use_dora")
    ):
        raise GradfixError(
            f"{path}: {part}: has settings beside rank and alpha: save it as an adapter of peft"
        )
    rank, alpha = settings.get(f"{part}.r"), settings.get(f"{part}.lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        return 1.0
    return alpha / (math.sqrt(rank) if settings.get(f"{part}.use_rslora") else rank)


class _Places:
    """The modules of a base, found by a name with dots or without."""

    def __init__(self, base: Iterable[str]) -> None:
        self._modules = {name.rpartition(".")[0] for name in base if name.endswith(".weight")}
        self._flat = {module.replace(".", "_"): module for module in self._modules}

    def find(self, name: str) -> str:
        """Give the module of the base; the name itself where there is none."""
        flat = _FLAT.match(name)
        if flat is not None:
            inside = name[flat.end() :]
            flattened = (inside, inside.removeprefix("text_model_"), f"text_model_{inside}")
            return next((self._flat[one] for one in flattened if one in self._flat), name)
        plain = _PROCESSOR.sub(lambda found: ".to_" + found[1].replace("out", "out.0"), name)
        part, _, inside = plain.partition(".")
        spellings = [plain, inside if part in _PARTS else plain]
        spellings += [one.removeprefix("text_model.") for one in spellings]
        return next((one for one in spellings if one in self._modules), plain)
