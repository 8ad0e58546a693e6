"""Load models and their processors, from a directory or the Hub, or say in one line why not."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradfix.errors import GradfixError
from gradfix.text_files import parse_json_value, read_text

# Any of these holds a vocabulary. Without one, transformers makes an empty tokenizer from the configuration
# alone.
VOCABULARY_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model", "spm.model", "tekken.json", "vocab.bpe",
)  # fmt: skip
# Where positions are counted from the padding index on, as in fairseq, so that fewer are left for tokens.
OFFSET_POSITIONS = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "longformer", "mpnet",
     "data2vec-text", "xmod"}
)  # fmt: skip
UNSET_LENGTH = 1_000_000  # transformers writes 10^30 where a tokenizer has no length of its own


def require_device(name: str | torch.device) -> None:
    """Refuse a device that this machine lacks, before anything is read.

    Args:
        name: As the user gave it: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` …

    Raises:
        GradfixError: if torch has no such device here, or can't compute on it.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        usable = device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        usable = False
    if not usable:
        count = torch.cuda.device_count()
        there = ["cpu", *(f"cuda:{number}" for number in range(count))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise GradfixError(
            f"--device {name}: this machine has no such device; give one of {', '.join(there)}"
        )


def load_config(location: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load a model's configuration.

    Args:
        location: A model directory or Hub id.
        trust_remote_code: Allow the code that a repository brings.

    Returns:
        The transformers configuration.

    Raises:
        GradfixError: If there is none, or it needs custom code.
    """
    from transformers import AutoConfig

    _require_regular_files(location)
    with explained(location, "load a model configuration"):
        return AutoConfig.from_pretrained(str(location), trust_remote_code=trust_remote_code)


def load_tokenizer(location: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load a tokenizer.

    Args:
        location: A model directory or Hub id.
        trust_remote_code: Allow the code that a repository brings.

    Returns:
        The transformers tokenizer.

    Raises:
        GradfixError: If there is none, or it needs custom code.
    """
    from transformers import AutoTokenizer

    directory = Path(location)
    if directory.is_dir() and not any((directory / name).exists() for name in VOCABULARY_FILES):
        raise GradfixError(
            f"{location}: has no tokenizer (expected a file such as tokenizer.json); "
            "save the base's tokenizer there"
        )
    _require_regular_files(location)
    with explained(location, "load a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(str(location), trust_remote_code=trust_remote_code)
    for texts in (("a",), ("a", "a")):
        _refuse_panic(tokenizer, texts, location)
    return tokenizer


def _refuse_panic(tokenizer: Any, texts: Sequence[str], location: str | Path) -> None:
    """Refuse a tokenizer that breaks on any text: the library's own error is none that a program may go on after."""
    try:
        tokenizer(*texts, verbose=False)
    except Exception:  # noqa: BLE001  one that wants more than a text is asked by who has it
        return
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise GradfixError(
            f"{location}: tokenizer.json: breaks on any text ({error}): it may name tokens that its vocabulary lacks; "
            "take the tokenizer that the model came with"
        ) from None


def load_image_processor(location: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Load an image processor for PIL images.

    Always PIL's arithmetic: the pixels then don't depend on whether torchvision is installed.

    Args:
        location: A model directory or Hub id.
        trust_remote_code: Allow the code that a repository brings.

    Returns:
        The transformers image processor.

    Raises:
        GradfixError: If there is none, or it needs custom code.
    """
    from transformers import AutoImageProcessor

    with explained(location, "load an image processor (preprocessor_config.json)"):
        return AutoImageProcessor.from_pretrained(
            str(location), trust_remote_code=trust_remote_code, backend="pil"
        )


def read_model_file(location: str | Path, name: str) -> Any:
    """Read a file of JSON beside a model, whatever it holds.

    Args:
        location: A model directory or Hub id.
        name: Of the file.

    Returns:
        Its value; None where there is no such file.
    """
    path: Path | None = Path(location, name)
    if not Path(location).is_dir():
        from transformers.utils import cached_file

        found = cached_file(
            str(location),
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
        )
        path = None if found is None else Path(found)
    return parse_json_value(read_text(path), str(path)) if path is not None and path.exists() else None


def _require_regular_files(location: str | Path) -> None:
    """Refuse a directory with pipes or devices in it: whoever opens one of those waits for ever."""
    directory = Path(location)
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise GradfixError(f"{path}: is not a regular file: remove it from the model's directory")


def padding_id(tokenizer: Any, location: str | Path) -> int:
    """The token to pad with.

    A tokenizer without a padding token (GPT-2's) pads with its end-of-sequence token: padded positions are
    masked and lie to the right, so no loss depends on the choice.

    Args:
        tokenizer: The tokenizer.
        location: Where it came from, for the message.

    Returns:
        A token id.

    Raises:
        GradfixError: If the tokenizer has neither token.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise GradfixError(
        f"{location}: the tokenizer cannot pad: it has neither a padding nor an end-of-sequence token; "
        "set pad_token in its tokenizer_config.json"
    )


def context_length(config: Any, tokenizer: Any) -> int | None:
    """How many tokens a model reads.

    Args:
        config: The model's configuration, or that of its text tower.
        tokenizer: Its tokenizer.

    Returns:
        The smaller of the tokenizer's and the model's limits; None where neither has one (relative
        positions).

    Raises:
        GradfixError: If the tokenizer's limit is no number.
    """
    limits = []
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float) or not longest > 0:
        raise GradfixError(
            f"{tokenizer.name_or_path}: model_max_length: expected a number of tokens, found {str(longest)[:40]!r}; "
            "mend its tokenizer_config.json"
        )
    if longest < UNSET_LENGTH:
        limits.append(int(longest))
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions > 0:
        offset = (config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0
        limits.append(int(positions) - offset)
    return min(limits, default=None)


def load_pretrained(
    auto_class: str,
    location: str | Path,
    overrides: Mapping[str, Any],
    *,
    dtype: torch.dtype | str,
    trust_remote_code: bool,
) -> nn.Module:
    """Load a model through one of the Auto classes of transformers.

    Args:
        auto_class: For example "AutoModelForSequenceClassification".
        location: A model directory or Hub id.
        overrides: Values that replace the configuration's.
        dtype: Of the weights; "auto" keeps what is stored.
        trust_remote_code: Allow the code that a repository brings.

    Returns:
        The model in eval mode. What the checkpoint lacks, and a head of another size, is drawn with seed 0.

    Raises:
        GradfixError: If it cannot be loaded, or most of its weights are not in the checkpoint.
    """
    import transformers

    with (
        explained(location, f"load a model for {auto_class}"),
        _quiet(transformers),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(0)
        model, report = getattr(transformers, auto_class).from_pretrained(
            str(location),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes="id2label" in overrides,
            output_loading_info=True,
            **overrides,
        )
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    absent = sum(size for name, size in sizes.items() if name in set(report["missing_keys"]))
    if absent > sum(sizes.values()) / 2:
        raise GradfixError(
            f"{location}: holds few of the weights of {type(model).__name__} "
            f"({len(report['missing_keys'])} tensors missing); is it a checkpoint of model_type "
            f"{model.config.model_type!r}?"
        )
    loaded: nn.Module = model.eval()
    return loaded


def empty_model(
    auto_class: str,
    location: str | Path,
    overrides: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> nn.Module:
    """Build a model through one of the Auto classes of transformers, without any weights.

    Args:
        auto_class: For example "AutoModelForSequenceClassification".
        location: A model directory or Hub id.
        overrides: Values that replace the configuration's.
        dtype: Of the weights that it will get.
        trust_remote_code: Allow the code that a repository brings.

    Returns:
        The model in eval mode: its parameters on the meta device, its buffers computed.

    Raises:
        GradfixError: If it cannot be built.
    """
    import transformers
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    with explained(location, f"build a model for {auto_class}"), torch.random.fork_rng(devices=[]):
        config = transformers.AutoConfig.from_pretrained(
            str(location), trust_remote_code=trust_remote_code, **overrides
        )
        for part in (config, *(getattr(config, name) for name in config.sub_configs)):
            if hasattr(part, "quantization_config"):
                del part.quantization_config  # its weights are decoded as they are read
            if getattr(part, "use_cache", None):
                part.use_cache = False  # a cache would grow each time that a block is run again
        with init_empty_weights(include_buffers=False):
            model = getattr(transformers, auto_class).from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            )
        model.tie_weights()
        if model.can_generate() and (Path(location) / "generation_config.json").exists():
            model.generation_config = transformers.GenerationConfig.from_pretrained(str(location))
    built: nn.Module = model.eval()
    return built


def with_memory(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Give an empty model memory for its weights.

    Args:
        model: Its parameters on the meta device.
        device: Where they will be.

    Returns:
        The model: its parameters NaN, so that one that is never filled shows.

    Raises:
        GradfixError: If there is not enough memory.
    """
    made: dict[int, nn.Parameter] = {}
    with explained(f"--device {device}", "hold the model"):
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in made:
                    nothing = torch.nan if parameter.is_floating_point() else 0
                    filled = torch.full_like(parameter, nothing, device=device)
                    made[id(parameter)] = nn.Parameter(filled, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        return model.to(device)


@contextmanager
def explained(location: str | Path, what: str) -> Iterator[None]:
    """Turn what another library raises on a user's file into one line.

    Args:
        location: Where the file is, for the message.
        what: What was being done with it, as "load a tokenizer".

    Yields:
        Nothing.

    Raises:
        GradfixError: For every error inside that is none yet.
    """
    try:
        yield
    except GradfixError:
        raise
    except Exception as error:  # other libraries raise whatever they stumble over in a file
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise GradfixError(
                f"{location}: needs custom code from its repository, which is not run unless you trust it: "
                "read it, then allow it with trust_remote_code (--trust-remote-code)"
            ) from error
        raise GradfixError(f"{location}: cannot {what} ({type(error).__name__}: {text[:300]})") from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence bars and the report on new heads for one call: that the base has no head is expected."""
    log = transformers.utils.logging
    level, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.ERROR)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()
