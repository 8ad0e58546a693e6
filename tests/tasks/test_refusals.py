"""What data, processors and callers may do wrong: each is refused in words of its own, naming where."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from torch import nn

from gradfix.errors import GradfixError
from gradfix.tasks import CustomTask, get_task
from gradfix.tasks.chat_templates import bounded_templates
from gradfix.tasks.data_files import read_file, read_files
from gradfix.tasks.images import pixels
from gradfix.tasks.labels import label_names
from gradfix.tasks.loading import context_length, load_config, load_tokenizer, require_device
from gradfix.tasks.text import tokenize
from tests import tiny


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_task("text-classification", prefix="x"), "takes no prefix"),
        (lambda: get_task("text-classification", max_length=0), "expected at least 1 token, found 0"),
        (lambda: get_task("causal-lm", messages="m", chat=False), "messages need a chat template"),
        (lambda: require_device("meta"), "this machine has no such device; give one of cpu"),
        (lambda: require_device("no device"), "this machine has no such device"),
    ],
)
def test_options_that_do_not_go_together(make: Callable[[], object], message: str) -> None:
    with pytest.raises(GradfixError, match=message):
        make()


class TestFiles:
    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.csv.gz", "rows.parquet"])
    def test_a_pipe_is_refused_before_it_is_opened(self, name: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / name)
        with pytest.raises(GradfixError, match="is not a regular file"):
            read_file(tmp_path / name)

    def test_a_compressed_file_that_may_not_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> bytes:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

        (tmp_path / "rows.csv.gz").write_bytes(b"")
        monkeypatch.setattr("gradfix.tasks.data_files._uncompressed", fails)
        with pytest.raises(GradfixError, match=r"rows.csv.gz: cannot be read \(Permission denied\)"):
            read_file(tmp_path / "rows.csv.gz")

    def test_files_of_other_classes_are_not_joined(self, tmp_path: Path) -> None:
        paths = []
        for names in (["no", "yes"], ["yes", "no"]):
            features = datasets.Features({"label": datasets.ClassLabel(names=names)})
            paths.append(tmp_path / f"{names[0]}.parquet")
            datasets.Dataset.from_dict({"label": [1]}, features=features).to_parquet(str(paths[-1]))
        with pytest.raises(GradfixError, match="its files declare different classes"):
            read_files(paths)

    @pytest.mark.parametrize("suffix", [".json", ".jsonl"])
    def test_rows_are_nested_to_a_depth(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"rows{suffix}"
        path.write_text('{"a": ' + "[" * 300 + "]" * 300 + "}")
        with pytest.raises(GradfixError, match="nested"):
            read_file(path)

    @pytest.mark.parametrize("content", ["text", b"text"])
    def test_names_of_classes_are_texts(self, content: Any) -> None:
        rows: list[dict[str, Any]] = [{"label": content}, {"label": 3}]
        with pytest.raises(GradfixError, match="expected the name of a class, found"):
            label_names(rows, "label")


class TestModels:
    def test_a_chat_needs_a_template(self, tmp_path: Path) -> None:
        directory = tiny.save_tiny_gpt2(tmp_path)
        asked = get_task("causal-lm", chat=True)
        asked.bind(directory)
        with pytest.raises(GradfixError, match="has no chat template"):
            asked.encode([{"prompt": "good", "completion": "film"}])
        task = get_task("causal-lm")
        task.bind(directory)
        turns = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "film"}]
        with pytest.raises(GradfixError, match="has no chat template"):
            task.check([{"messages": turns}])

    @pytest.mark.parametrize("load", [load_config, load_tokenizer])
    def test_a_pipe_in_a_models_folder(self, load: Any, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "tokenizer.json").write_text("{}")
        os.mkfifo(tmp_path / "tokenizer_config.json")
        with pytest.raises(GradfixError, match=r"tokenizer_config.json: is not a regular file"):
            load(tmp_path)

    def test_a_tokenizers_length_is_a_number(self) -> None:
        words = tiny.tokenizer()
        words.model_max_length = "many"
        with pytest.raises(GradfixError, match="model_max_length: expected a number of tokens, found 'many'"):
            context_length(None, words)

    def test_a_text_of_no_tokens_is_named(self) -> None:
        with pytest.raises(GradfixError, match="the tokenizer makes no token of its text"):
            tokenize(tiny.tokenizer(), [""], None, limit=None, strict=False, rows=[{"text": ""}])

    def test_images_of_unlike_sizes(self) -> None:
        def processor(images: Any, return_tensors: str) -> dict[str, list[torch.Tensor]]:
            return {"pixel_values": [torch.zeros(3, images.height, 4)]}

        rows = tiny.images(2)
        rows[1]["image"] = rows[1]["image"].resize((4, 9))
        with pytest.raises(GradfixError, match="the image processor makes images of unlike sizes"):
            pixels(processor, rows, [row["image"] for row in rows], "image")

    def test_a_message_of_no_text(self) -> None:
        words = tiny.tokenizer()
        words.chat_template = "{{ messages[0].content }}"
        with bounded_templates(), pytest.raises(ValueError, match="a message holds what is no text"):
            words.apply_chat_template([{"role": "user", "content": b"bytes"}], tokenize=False)

    def test_half_of_two_texts(self, tmp_path: Path) -> None:
        task = get_task("text-classification")
        task.bind(tiny.save_tiny_bert_classifier(tmp_path))
        row = {"premise": "good", "hypothesis": "film", "text": "good", "label": "positive"}
        halves = {"sentence1": "good", "sentence2": "film", "label": "positive"}
        task.check([{**row}])
        half = get_task("text-classification", text="sentence1")
        half.bind(tmp_path)
        with pytest.raises(GradfixError, match="has a second text in column 'sentence2'"):
            half.check([halves])

    def test_a_completion_of_no_token(self, tmp_path: Path) -> None:
        template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
        task = get_task("causal-lm")
        task.bind(tiny.save_tiny_gpt2(tmp_path, chat_template=template))
        with pytest.raises(GradfixError):
            task.encode([{"prompt": "good", "completion": "film"}])

    def test_siglip2(self) -> None:
        task = get_task("zero-shot-image-classification", labels=["red", "green"])
        model = nn.Module()
        model.config = SimpleNamespace(model_type="siglip2")
        with pytest.raises(GradfixError, match="siglip2: images of variable size are not supported"):
            task.prepare(model)

    def test_a_head_that_ends_otherwise_is_not_refitted(self, tmp_path: Path) -> None:
        task = get_task("text-classification", labels=["no", "yes"])
        task.bind(tiny.save_tiny_bert_classifier(tmp_path))
        with pytest.raises(GradfixError, match="does not end in a linear layer of 2 classes"):
            task.last_layer(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


class TestCustom:
    @staticmethod
    def _task(**options: Any) -> CustomTask:
        def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
            return model(batch).sum(-1)

        return CustomTask(
            encode_rows=lambda rows: torch.ones(len(rows), 2),
            loss_of=loss,
            predict_of=lambda model, batch: ([""], batch),
            **options,
        )

    def test_a_module_that_cannot_be_copied(self) -> None:
        class Locked(nn.Linear):
            def __deepcopy__(self, memo: object) -> "Locked":
                raise TypeError("cannot pickle it")

        with pytest.raises(GradfixError, match=r"can't be copied \(cannot pickle it\)"):
            self._task(build=lambda: Locked(2, 2)).load_model(".")

    def test_features_are_one_row_a_sample(self) -> None:
        task = self._task(build=lambda: nn.Linear(2, 2), features_of=lambda model, batch: batch.sum())
        with pytest.raises(GradfixError, match=r"features_of returned \[\]; expected \[3, features\]"):
            task.features(nn.Linear(2, 2), torch.ones(3, 2))

    def test_it_builds_its_model_itself(self) -> None:
        task = self._task(build=lambda: nn.Linear(2, 2))
        with pytest.raises(GradfixError):
            super(CustomTask, task).empty_model(".", dtype=torch.float32)


def test_json_is_what_a_row_is_written_in(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a"}))
    assert read_file(path).records == [{"text": "a"}]
