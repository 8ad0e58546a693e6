"""The release with another tokenizer reads it, and knows its words from before."""

import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from tests.tiny import save_tiny_bert_base, texts

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import encoder


def test_a_word_starts_as_it_was(tmp_path: Path) -> None:
    base = save_tiny_bert_base(tmp_path / "old")
    sentences = [row["text"] for row in texts(40)]
    encoder.other_tokenizer(base, sentences, tmp_path / "new", steps=2, tokens=300)
    old, new = (
        AutoModel.from_pretrained(path).get_input_embeddings().weight for path in (base, tmp_path / "new")
    )
    before, after = (AutoTokenizer.from_pretrained(path) for path in (base, tmp_path / "new"))
    assert len(new) == len(after) == 300
    word = max(after.get_vocab(), key=len)
    spelt = before(after.convert_tokens_to_string([word]), add_special_tokens=False)["input_ids"]
    assert spelt
    # Two steps of training move it by little.
    torch.testing.assert_close(new[after.get_vocab()[word]], old[spelt].mean(0), atol=2e-3, rtol=0)
    assert after.decode(after(sentences[0])["input_ids"], skip_special_tokens=True) == sentences[0]
