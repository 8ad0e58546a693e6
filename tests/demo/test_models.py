from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

from gradfix.demo.captions import MAX_TOKENS, concepts, new_tokenizer
from gradfix.demo.datasets import load_task
from gradfix.demo.models import ModelSize, new_model, pixel_values, save_directory


def test_the_end_token_has_the_highest_id() -> None:
    tokenizer = new_tokenizer()
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert new_model(ModelSize(), 0).config.text_config.eos_token_id == tokenizer.eos_token_id


def test_captions_are_read_whole_and_apart() -> None:
    tokenizer = new_tokenizer()
    captions = [caption for concept in concepts(clothing=True) for caption in concept.captions]
    assert len(set(captions)) == len(captions)
    for caption in captions:
        ids = tokenizer(caption)["input_ids"]
        assert len(ids) == len(caption) + 2 <= MAX_TOKENS
        assert tokenizer.unk_token_id not in ids
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer("é")["input_ids"][1] == tokenizer.unk_token_id


def test_a_saved_directory_loads_as_any_clip_does(tmp_path: Path) -> None:
    model = new_model(ModelSize(), 3).eval()
    save_directory(model, tmp_path / "model")
    loaded = CLIPModel.from_pretrained(tmp_path / "model").eval()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("the digit one")["input_ids"] == new_tokenizer()("the digit one")["input_ids"]
    images = AutoImageProcessor.from_pretrained(tmp_path / "model")
    task = load_task("digits")
    pictures = [row["image"] for row in task.rows("validation")[:5]]
    pixels = images(images=pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, pixel_values(task.validation.images[:5]))
    both = CLIPProcessor.from_pretrained(tmp_path / "model")
    out = loaded(**both(text=["the digit one", "one"], images=pictures, padding=True, return_tensors="pt"))
    assert out.logits_per_image.shape == (5, 2)
    larger = [picture.resize((90, 90)) for picture in pictures]
    assert images(images=larger, return_tensors="pt")["pixel_values"].shape == (5, 3, 28, 28)


def test_making_a_model_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    new_model(ModelSize(width=8, depth=1, text_width=8, text_depth=1, heads=1), 0)
    assert torch.equal(torch.rand(1), expected)
