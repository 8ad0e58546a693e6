"""Zero-shot classification with a mini CLIP, and fine-tuning of its image tower against that head."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from gradfix.demo.captions import new_tokenizer
from gradfix.demo.datasets import LabTask, Split
from gradfix.demo.models import is_image_tower, pixel_values
from gradfix.progress import Progress, silent
from studies.pair.pretrain import Schedule

TUNING = Schedule(steps=400, batch=64, learning_rate=1e-4, weight_decay=0.0, warmup=40, betas=(0.9, 0.999))


@torch.no_grad()
def class_weights(model: CLIPModel, task: LabTask) -> Tensor:
    """Build the zero-shot head from the model's own text tower.

    Args:
        model: The model.
        task: Gives the class names and the prompt templates.

    Returns:
        The normalised mean of the normalised text features over the templates, shape (classes, projection).
    """
    tokenizer = new_tokenizer()
    features = []
    for template in task.templates:
        prompts = [template.format(name) for name in task.class_names]
        tokens = tokenizer(prompts, padding=True, return_tensors="pt")["input_ids"]
        pooled = model.text_model(input_ids=tokens).pooler_output
        features.append(functional.normalize(model.text_projection(pooled), dim=-1))
    return functional.normalize(torch.stack(features).mean(dim=0), dim=-1)


def zero_shot_logits(model: CLIPModel, weights: Tensor, pixels: Tensor) -> Tensor:
    """Score images against the classes.

    Args:
        model: Its image tower sees the images; its own logit scale is used.
        weights: From :func:`class_weights`, shape (classes, projection).
        pixels: Shape (N, 3, 28, 28).

    Returns:
        Logits, shape (N, classes).
    """
    seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    logits: Tensor = model.logit_scale.detach().exp() * functional.normalize(seen, dim=-1) @ weights.T
    return logits


@torch.no_grad()
def zero_shot_accuracy(model: CLIPModel, task: LabTask, split: Split) -> float:
    """Measure the share of images classified right.

    Args:
        model: The model.
        task: Gives the classes.
        split: The images.

    Returns:
        A share in [0, 1].
    """
    weights = class_weights(model, task)
    right = 0
    for start in range(0, len(split), 500):
        logits = zero_shot_logits(model, weights, pixel_values(split.images[start : start + 500]))
        right += int((logits.argmax(dim=-1).numpy() == split.labels[start : start + 500]).sum())
    return right / len(split)


def finetune(
    model: CLIPModel,
    task: LabTask,
    schedule: Schedule = TUNING,
    seed: int = 0,
    *,
    progress: Progress = silent,
) -> list[float]:
    """Fine-tune the image tower in place, by cross-entropy against the frozen zero-shot head.

    Args:
        model: The model, float32.
        task: Its training split is used and nothing else of it.
        schedule: How long and how fast.
        seed: Of the order of the images.
        progress: Called after every update.

    Returns:
        The loss of every update.
    """
    generator = np.random.default_rng([seed, 3])
    weights = class_weights(model, task)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_image_tower(name))
    optimizer, scheduler = schedule.optimizer([p for p in model.parameters() if p.requires_grad])
    order = np.zeros(0, dtype=np.int64)
    losses = []
    model.train()
    for step in range(schedule.steps):
        while len(order) < schedule.batch:
            order = np.concatenate([order, generator.permutation(len(task.train))])
        chosen, order = order[: schedule.batch], order[schedule.batch :]
        logits = zero_shot_logits(model, weights, pixel_values(task.train.images[chosen]))
        loss = functional.cross_entropy(logits, torch.from_numpy(task.train.labels[chosen]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        progress(f"fine-tuning on {task.name}", step + 1, schedule.steps, "steps")
    model.requires_grad_(True)
    model.eval()
    return losses
