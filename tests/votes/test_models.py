"""Whole models: fast votes are exact, and which parameters the plain loop had to count is known."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradfix.votes import count_votes
from tests import models
from tests.votes.exact import assert_fast_is_exact

N, T = 4, 7


def cross_entropy(logits, labels):
    return functional.cross_entropy(logits, labels, reduction="none")


def inputs(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def classification(model, batch):
    return cross_entropy(model(**inputs(batch)).logits, batch["labels"])


def next_token(model, batch):
    logits = model(**batch).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:])
    mask = batch["attention_mask"][:, 1:]
    return (losses * mask).sum(1) / mask.sum(1)


def text_to_text(model, batch):
    return cross_entropy(model(**batch).logits.transpose(1, 2), batch["labels"]).mean(1)


def texts(padded=True, **more):
    ids = torch.randint(3, models.VOCABULARY, (N, T))
    mask = torch.ones(N, T, dtype=torch.long)
    if padded:
        mask[1, 4:], mask[3, 5:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, **more}


def labels():
    return torch.randint(0, 3, (N,))


def images():
    return {"pixel_values": torch.randn(N, 3, 16, 16, dtype=torch.float64), "labels": labels()}


def zero_shot(model, batch):
    classes = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).double()
    features = model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
    features = features / features.norm(dim=-1, keepdim=True)
    return cross_entropy(model.logit_scale.exp() * features @ classes.t(), batch["labels"])


def targets():
    return {"labels": torch.randint(3, models.VOCABULARY, (N, 4))}


CASES = {
    "bert": (models.tiny_bert, lambda: texts(labels=labels()), classification),
    "bert, tied": (models.tiny_bert_masked_lm, texts, next_token),
    "roberta": (models.tiny_roberta, lambda: texts(labels=labels()), classification),
    "distilbert": (models.tiny_distilbert, lambda: texts(labels=labels()), classification),
    "t5": (models.tiny_t5, lambda: texts(**targets()), text_to_text),
    "t5 v1.1": (
        lambda: models.tiny_t5(tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
        lambda: texts(padded=False, **targets()),
        text_to_text,
    ),
    "gpt2": (models.tiny_gpt2, texts, next_token),
    "llama": (models.tiny_llama, texts, next_token),
    "qwen2": (models.tiny_qwen2, texts, next_token),
    "vit": (models.tiny_vit, images, classification),
    "clip": (models.tiny_clip, images, zero_shot),
}


@pytest.mark.parametrize("kind", CASES)
def test_transformers(kind):
    build, batch, loss = CASES[kind]
    torch.manual_seed(3)
    model = build().double()
    votes = assert_fast_is_exact(model, [batch(), batch()], loss)
    if kind == "clip":
        assert any(name.startswith("text_model") for name in votes.uncovered)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("samples", [3, T])
def test_torch_encoder(batch_first, samples):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, x, padding):
            x = x if batch_first else x.transpose(0, 1)
            x = self.encoder(x, src_key_padding_mask=padding)
            return self.head(x[:, 0] if batch_first else x[0])

    torch.manual_seed(0)
    x = torch.randn(samples, T, 8, dtype=torch.float64)
    padding = torch.zeros(samples, T, dtype=torch.bool)
    padding[1, 3:] = True
    batch = (x, padding, torch.randint(0, 3, (samples,)))
    model = Encoder().double().eval()
    assert_fast_is_exact(model, [batch], lambda m, b: cross_entropy(m(b[0], b[1]), b[2]))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "qwen2"])
def test_padding_changes_no_vote(kind):
    """The votes of samples alone, each at its own length, add up to those of the padded batch."""
    build, make, loss = CASES[kind]
    torch.manual_seed(5)
    model, batch = build().double(), make()
    votes = count_votes(model, [batch], loss)
    alone = []
    for n in range(N):
        length = int(batch["attention_mask"][n].sum())
        alone.append({k: v[n : n + 1, :length] if v.ndim == 2 else v[n : n + 1] for k, v in batch.items()})
    unpadded = count_votes(model, alone, loss, method="plain")
    for name, counts in votes.items():
        if not name.endswith(("key.bias", "k_proj.bias", "c_attn.bias")):  # rounding alone
            differ = (counts != unpadded[name]).double().mean()
            assert differ <= 0.002, (name, float(differ))


def test_bfloat16_changes_few_signs():
    """Of the coordinates on which most samples agree, autocast to bfloat16 turns next to none."""
    torch.manual_seed(0)
    model, batch = models.tiny_bert(), texts(labels=labels())
    full = count_votes(model, [batch], classification)
    low = count_votes(model, [batch], classification, dtype="bfloat16")
    plain = count_votes(model, [batch], classification, dtype="bfloat16", method="plain")
    assert (low.dtype, full.dtype) == ("bfloat16", "float32")
    names = [name for name in full if not name.endswith("key.bias")]
    total = sum(full[name].numel() for name in names)
    turned = {
        which: sum(int((full[name].sign() != votes[name].sign()).sum()) for name in names) / total
        for which, votes in (("fast", low), ("plain", plain))
    }
    opposite = sum(int((full[name].sign() * low[name].sign() < 0).sum()) for name in names) / total
    assert 0 < turned["fast"] < 0.06
    assert turned["fast"] < 1.5 * turned["plain"] + 0.005
    assert opposite < 0.02
