"""The lab's mini CLIP: its configuration, its image processor, and the pixels it reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from gradfix.demo.captions import MAX_TOKENS, new_tokenizer
from gradfix.demo.render import SIDE


@dataclass(frozen=True)
class ModelSize:
    """How large a mini CLIP is.

    Attributes:
        width: Of the image tower; its multi-layer perceptrons are twice as wide.
        depth: Blocks of the image tower.
        text_width: Of the text tower.
        text_depth: Blocks of the text tower.
        projection: Dimension of the shared space.
        heads: Attention heads of either tower.
        patch: Side of an image patch in pixels.
    """

    width: int = 128
    depth: int = 4
    text_width: int = 64
    text_depth: int = 2
    projection: int = 64
    heads: int = 4
    patch: int = 7


def new_model(size: ModelSize, seed: int) -> CLIPModel:
    """Make an untrained mini CLIP.

    Args:
        size: How large.
        seed: Of its initial weights.

    Returns:
        The model, float32, in training mode.
    """
    tokenizer = new_tokenizer()
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.text_width,
            "intermediate_size": 2 * size.text_width,
            "num_hidden_layers": size.text_depth,
            "num_attention_heads": size.heads,
            "max_position_embeddings": MAX_TOKENS,
            "projection_dim": size.projection,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": size.width,
            "intermediate_size": 2 * size.width,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.heads,
            "image_size": SIDE,
            "patch_size": size.patch,
            "projection_dim": size.projection,
        },
        projection_dim=size.projection,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config).train()


def image_processor() -> CLIPImageProcessorPil:
    """Make the image processor that :func:`pixel_values` equals; it needs no torchvision.

    Returns:
        One that ``AutoImageProcessor.from_pretrained`` loads back once saved: 28 × 28, three equal channels.
    """
    return CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def pixel_values(images: npt.NDArray[np.uint8]) -> Tensor:
    """Turn grey images into what the model reads.

    Args:
        images: Grey values, shape (N, 28, 28).

    Returns:
        Values in [−1, 1], shape (N, 3, 28, 28), float32; the channels are equal.
    """
    values = torch.from_numpy(images).float().div(127.5).sub(1.0)
    return values[:, None].expand(-1, 3, -1, -1)


def save_directory(model: CLIPModel, directory: Path) -> None:
    """Write everything a Hugging Face model directory holds.

    Args:
        model: The model; its weights are written in the dtype they have.
        directory: Made if it does not exist.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Not model.save_pretrained: it draws a progress bar on the terminal.
    model.config.architectures = ["CLIPModel"]
    model.config.save_pretrained(directory)
    save_file(model.state_dict(), directory / "model.safetensors", metadata={"format": "pt"})
    new_tokenizer().save_pretrained(directory)
    image_processor().save_pretrained(directory)


def is_image_tower(name: str) -> bool:
    """Tell whether fine-tuning changes a parameter.

    Args:
        name: Of a parameter of the model.

    Returns:
        True for the image tower and its projection; the text tower and the logit scale stay as they are.
    """
    return name.startswith(("vision_model.", "visual_projection."))
