"""Tiny model directories as `from_pretrained` finds them: weights, configuration and processors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTImageProcessorPil,
)

from tests import models as shapes

ENGLISH = """
a the of photo good bad fine great awful dull bright film book music food day night red green blue dog cat tree
house car was is and not very really so loved hated it this that one two three four five yes no maybe question
answer positive negative neutral what where who capital city river mountain user assistant . , ?
"""
WORDS = ENGLISH.split()
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
assert len(SPECIAL) + len(WORDS) <= shapes.VOCABULARY
SENTIMENTS = ("negative", "neutral", "positive")


# Wide enough that outputs differ between inputs; the default of 0.02 makes a tiny model almost constant.
SPREAD = {"initializer_range": 0.4}


def tokenizer(*, template: str | None = None, pad: bool = True, length: int = 64) -> PreTrainedTokenizerFast:
    """A tokenizer by words; what it doesn't know is <unk>. ``template``: for example ``<s> $A </s>``."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        pair = f"{template} $B:1 </s>:1" if "$A" in template else None
        inner.post_processor = processors.TemplateProcessing(
            single=template, pair=pair, special_tokens=[(name, vocabulary[name]) for name in ("<s>", "</s>")]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        **({"pad_token": "<pad>"} if pad else {}),
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
    )


def _save(model: nn.Module, directory: Path, *processors: Any) -> Path:
    model.save_pretrained(directory)
    for processor in processors:
        processor.save_pretrained(directory)
    return directory


def save_tiny_bert_classifier(
    directory: Path, seed: int = 0, labels: Sequence[str] = SENTIMENTS, **settings: Any
) -> Path:
    """A BERT classifier of ``labels``, with tokenizer."""
    model = shapes.tiny_bert(seed, **{"num_labels": len(labels), "pad_token_id": 0, **SPREAD, **settings})
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: index for index, name in enumerate(labels)}
    return _save(model, directory, tokenizer(template="<s> $A </s>"))


def _named(model: nn.Module, labels: Sequence[str], **settings: Any) -> nn.Module:
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: index for index, name in enumerate(labels)}
    for key, value in settings.items():
        setattr(model.config, key, value)
    return model


def save_tiny_bert_multi_label(directory: Path, seed: int = 0, labels: Sequence[str] = SENTIMENTS) -> Path:
    """A BERT classifier of any number of ``labels`` at once, with tokenizer."""
    model = shapes.tiny_bert(seed, num_labels=len(labels), pad_token_id=0, **SPREAD)
    _named(model, labels, problem_type="multi_label_classification")
    return _save(model, directory, tokenizer(template="<s> $A </s>"))


def save_tiny_bert_regression(directory: Path, seed: int = 0) -> Path:
    """A BERT with one output, with tokenizer."""
    model = shapes.tiny_bert(seed, num_labels=1, pad_token_id=0, **SPREAD)
    return _save(model, directory, tokenizer(template="<s> $A </s>"))


TAGS = ("O", "B-PER", "I-PER", "B-LOC")


def save_tiny_bert_tagger(directory: Path, seed: int = 0, labels: Sequence[str] = TAGS) -> Path:
    """A BERT that tags words, with tokenizer."""
    model = shapes.tiny_bert_of(
        "BertForTokenClassification", seed, num_labels=len(labels), pad_token_id=0, **SPREAD
    )
    return _save(_named(model, labels), directory, tokenizer(template="<s> $A </s>"))


def save_tiny_bert_reader(directory: Path, seed: int = 0) -> Path:
    """A BERT that answers questions by spans, with tokenizer."""
    model = shapes.tiny_bert_of("BertForQuestionAnswering", seed, pad_token_id=0, **SPREAD)
    return _save(model, directory, tokenizer(template="<s> $A </s>"))


def save_tiny_sentence_bert(directory: Path, seed: int = 0, pooling: str = "mean_tokens") -> Path:
    """A BERT as sentence-transformers saves it."""
    model = shapes.tiny_bert_of("BertModel", seed, pad_token_id=0, **SPREAD)
    _save(model, directory, tokenizer(template="<s> $A </s>"))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": name == pooling for name in ("mean_tokens", "cls_token")}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    return directory


def save_tiny_bert_base(directory: Path, seed: int = 0, **settings: Any) -> Path:
    """A BERT masked language model: a base without any classifier, with tokenizer."""
    model = shapes.tiny_bert_masked_lm(seed, **{"pad_token_id": 0, **SPREAD, **settings})
    return _save(model, directory, tokenizer(template="<s> $A </s>"))


def save_tiny_gpt2(directory: Path, seed: int = 0, chat_template: str | None = None, **settings: Any) -> Path:
    """A GPT-2 language model; its tokenizer has no padding token, as the real one."""
    words = tokenizer(pad=False)
    words.chat_template = chat_template
    return _save(shapes.tiny_gpt2(seed, **{**SPREAD, **settings}), directory, words)


def save_tiny_t5(directory: Path, seed: int = 0, **settings: Any) -> Path:
    """A T5 with a tokenizer that ends every text with </s>."""
    model = shapes.tiny_t5(seed, **{"pad_token_id": 0, "eos_token_id": 2, **settings})
    return _save(model, directory, tokenizer(template="$A </s>"))


def save_tiny_clip(directory: Path, seed: int = 0, **settings: Any) -> Path:
    """A CLIP for images of 16 × 16, with tokenizer and image processor."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_convert_rgb=True
    )
    return _save(shapes.tiny_clip(seed, **settings), directory, tokenizer(template="<s> $A </s>"), images)


def save_tiny_siglip(directory: Path, seed: int = 0, **settings: Any) -> Path:
    """A SigLIP for images of 16 × 16, with tokenizer and image processor."""
    text = {
        "vocab_size": shapes.VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "projection_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {**text, "image_size": 16, "patch_size": 4}
    for key in ("vocab_size", "max_position_embeddings", "projection_size", "pad_token_id", "bos_token_id"):
        del vision[key]
    del vision["eos_token_id"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision, **settings)).eval()
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    return _save(model, directory, tokenizer(template="$A </s>", length=12), images)


def save_tiny_vit(
    directory: Path, seed: int = 0, labels: Sequence[str] = ("red", "green", "blue"), **settings: Any
) -> Path:
    """A ViT classifier for images of 16 × 16, with image processor."""
    model = shapes.tiny_vit(seed, **{"num_labels": len(labels), **SPREAD, **settings})
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: index for index, name in enumerate(labels)}
    return _save(model, directory, ViTImageProcessorPil(size={"height": 16, "width": 16}))


def texts(n: int, seed: int = 0, labels: Sequence[str] = SENTIMENTS) -> list[dict[str, str]]:
    """Rows of text and label; every class in turn, and its own name among random words."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(n):
        label = labels[index % len(labels)]
        count = 3 + int(torch.randint(0, 6, (), generator=generator))
        picked = torch.randint(0, len(WORDS), (count,), generator=generator).tolist()
        rows.append({"text": " ".join([*(WORDS[i] for i in picked), label]), "label": label})
    return rows


def images(n: int, seed: int = 0, labels: Sequence[str] = ("red", "green", "blue")) -> list[dict[str, Any]]:
    """Rows of image and label: noise of 20 × 16 in which the channel of the class is brighter."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(n):
        noise = torch.randint(0, 128, (16, 20, 3), generator=generator, dtype=torch.uint8)
        noise[..., index % len(labels) % 3] += 100
        rows.append({"image": Image.fromarray(noise.numpy()), "label": labels[index % len(labels)]})
    return rows


def save_image_folder(directory: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Images as PNG, one folder a class."""
    for index, row in enumerate(rows):
        (directory / row["label"]).mkdir(parents=True, exist_ok=True)
        row["image"].save(directory / row["label"] / f"{index:03}.png")
    return directory
