"""Pre-training of the lab's mini CLIPs, from scratch and independently of each other.

The loss is CLIP's, with equal captions of a batch merged (UniCL, Yang et al., CVPR 2022, eq. 2-4): an image
has one right caption among those of the batch, a caption may have several right images. Without merging, the
other images of an "a" in a batch would be taught to be wrong.
"""

import string
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from gradfix.demo.captions import CLOTHING_NAMES, concepts, new_tokenizer
from gradfix.demo.datasets import fashion_mnist
from gradfix.demo.models import pixel_values
from gradfix.demo.render import render, wear
from gradfix.progress import Progress, silent


@dataclass(frozen=True)
class Corpus:
    """What a model is pre-trained on.

    Attributes:
        fonts: Names of matplotlib's fonts.
        seed: Of the drawing.
        characters: How many images of characters.
        clothing: Which of Fashion-MNIST's training images, as a range; ``None`` for none.
    """

    fonts: tuple[str, ...]
    seed: int
    characters: int = 40_000
    clothing: tuple[int, int] | None = None


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: AdamW, the learning rate warmed up and brought to zero by a cosine.

    Attributes:
        steps: Updates.
        batch: Images an update.
        learning_rate: Its highest value.
        weight_decay: AdamW's.
        warmup: Updates until the highest learning rate.
        betas: AdamW's.
    """

    steps: int = 1500
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    betas: tuple[float, float] = field(default=(0.9, 0.98))

    def optimizer(
        self, parameters: list[torch.nn.Parameter]
    ) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
        """Make the optimiser and its schedule.

        Args:
            parameters: What to train.

        Returns:
            The optimiser, and the schedule to step after it.
        """
        optimizer = torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )

        def factor(step: int) -> float:
            rising = min(1.0, (step + 1) / max(1, self.warmup))
            return rising * 0.5 * (1 + float(np.cos(np.pi * step / self.steps)))

        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def draw_corpus(corpus: Corpus) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw all images of a corpus.

    Args:
        corpus: What to draw.

    Returns:
        Grey values of shape (N, 28, 28), and the index of each image's concept, shape (N,).
    """
    generator = np.random.default_rng([corpus.seed, 1])
    keys = [concept.key for concept in concepts(clothing=True)]
    # Digits are as frequent as small letters; a digit is then drawn 2.6 times as often as a letter.
    shares = {string.digits: 0.36, string.ascii_lowercase: 0.36, string.ascii_uppercase: 0.28}
    chance = [share / len(group) for group, share in shares.items() for _ in group]
    labels = generator.choice(len(chance), p=chance, size=corpus.characters)
    images = render([keys[label] for label in labels], corpus.fonts, generator)
    if corpus.clothing is not None:
        garments = fashion_mnist("train")
        part = slice(*corpus.clothing)
        worn = wear(garments.images[part], generator, strength=0.5)
        images = np.concatenate([images, worn])
        labels = np.concatenate([labels, garments.labels[part] + len(keys) - len(CLOTHING_NAMES)])
    return images, labels.astype(np.int64)


def pretrain(
    model: CLIPModel,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    schedule: Schedule,
    seed: int,
    *,
    progress: Progress = silent,
) -> list[float]:
    """Train both towers in place.

    Args:
        model: The model to train.
        images: Grey values, shape (N, 28, 28).
        labels: The index of each image's concept, shape (N,).
        schedule: How long and how fast.
        seed: Of the order of the images and the choice of captions.
        progress: Called after every update.

    Returns:
        The loss of every update.
    """
    generator = np.random.default_rng([seed, 2])
    tokens = caption_tokens()
    optimizer, scheduler = schedule.optimizer(list(model.parameters()))
    losses = []
    model.train()
    for step in range(schedule.steps):
        chosen = generator.integers(len(labels), size=schedule.batch)
        present, target = np.unique(labels[chosen], return_inverse=True)
        caption = generator.integers(tokens.shape[1], size=len(present))
        loss = contrastive_loss(
            model, pixel_values(images[chosen]), tokens[present, caption], torch.from_numpy(target)
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # 100, CLIP's own bound
        losses.append(loss.item())
        progress("pre-training", step + 1, schedule.steps, "steps")
    model.eval()
    return losses


def caption_tokens() -> Tensor:
    """Tokenise every caption of every concept.

    Returns:
        Token ids, shape (concepts, captions, tokens), padded after the end token.
    """
    captions = [concept.captions for concept in concepts(clothing=True)]
    flat = [caption for each in captions for caption in each]
    ids: Tensor = new_tokenizer()(flat, padding=True, return_tensors="pt")["input_ids"]
    return ids.view(len(captions), len(captions[0]), -1)


def contrastive_loss(model: CLIPModel, pixels: Tensor, captions: Tensor, target: Tensor) -> Tensor:
    """Compute CLIP's loss on a batch whose equal captions are merged.

    Args:
        model: The model.
        pixels: N images, shape (N, 3, 28, 28).
        captions: C different captions' token ids, shape (C, tokens). No mask: attention is causal, so
            padding after the end token changes nothing before it.
        target: The index of each image's caption, shape (N,); every caption has an image.

    Returns:
        The mean of the image-to-caption and the caption-to-image loss, a scalar.
    """
    seen = functional.normalize(
        model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1
    )
    read = functional.normalize(
        model.text_projection(model.text_model(input_ids=captions).pooler_output), dim=-1
    )
    logits = model.logit_scale.exp() * seen @ read.T
    right = functional.one_hot(target, len(captions)).to(logits.dtype)
    caption_to_image = -(right * logits.log_softmax(dim=0)).sum(dim=0) / right.sum(dim=0)
    loss: Tensor = 0.5 * (functional.cross_entropy(logits, target) + caption_to_image.mean())
    return loss
