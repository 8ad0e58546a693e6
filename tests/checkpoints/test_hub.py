"""A model on the Hub is judged by its headers, and downloaded when its first tensor is read: against a server."""

import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from gradfix.checkpoints import Checkpoint
from gradfix.checkpoints.reading import remote, remote_header
from gradfix.checkpoints.reading.remote_header import FIRST_BYTES, GLANCE
from gradfix.errors import GradfixError
from gradfix.evaluation.target_model import TargetModel
from gradfix.recipes import CheckRecipe, validate
from gradfix.tasks import get_task
from gradfix.transport.checks import Findings
from gradfix.transport.inputs import check_inputs
from gradfix.vectors.placement import own_weights, place
from gradfix.vectors.task_vector import TaskVector
from tests import fake_hub, models, tiny
from tests.fake_hub import FakeHub
from tests.triples import perturbed

ROWS = 8000
"""Rows of the embeddings, so that weights are many times as long as what is asked for at first."""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()
    with fake_hub.serve(hub) as endpoint:
        fake_hub.use(endpoint, cache, monkeypatch)
        yield hub
        huggingface_hub.close_session()


def _saved(directory: Path, seed: int = 0, shard_size: str = "5GB", **settings: Any) -> Path:
    model = models.tiny_llama(seed, **{"vocab_size": ROWS, **settings})
    model.save_pretrained(directory, max_shard_size=shard_size)
    return directory


def _refusal(location: str) -> str:
    with pytest.raises(GradfixError) as refusal:
        Checkpoint.open(location)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_opening_fetches_descriptions_and_headers_and_reading_the_rest(hub: FakeHub, tmp_path: Path) -> None:
    saved = _saved(tmp_path / "saved")
    tiny.tokenizer().save_pretrained(saved)
    size = (saved / "model.safetensors").stat().st_size
    others = {"pytorch_model__bin": b"x" * size, "model__onnx": b"x", "modeling_x__py": b"x"}
    commit = hub.push("org/one", saved, **others)
    checkpoint = Checkpoint.open("org/one")
    assert checkpoint.location == f"org/one@{commit}"
    assert checkpoint.kind == "safetensors file"
    assert checkpoint.specs == Checkpoint.open(saved).specs
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.directory is not None
    assert (checkpoint.directory / "tokenizer.json").exists()
    assert not (checkpoint.directory / "model.safetensors").exists()
    assert (hub.weight_requests("org/one"), hub.weight_bytes("org/one")) == (1, FIRST_BYTES)
    with pytest.raises(KeyError):
        checkpoint["lm_hed.weight"]
    assert hub.weight_bytes("org/one") == FIRST_BYTES
    hub.forget()
    expected = load_file(saved / "model.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(checkpoint[name], tensor)
    rows = checkpoint.read("lm_head.weight", slice(10, 20))
    assert torch.equal(rows, expected["lm_head.weight"][10:20])
    assert hub.sent == {"org/one/model.safetensors": size}
    fetched = {path.name for path in checkpoint.directory.iterdir()}
    # no other format; code is carried over to outputs, and never run
    assert fetched == {*(path.name for path in saved.iterdir()), "modeling_x.py"}
    assert checkpoint.digest() == Checkpoint.open(saved).digest()


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_what_the_cache_has_is_not_asked_for_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    saved = _saved(tmp_path / "saved", shard_size="515KB")
    commit = hub.push("org/many", saved, pytorch_model__bin=b"x")
    revision = commit if revision == "commit" else revision
    Checkpoint.open("org/many", revision=revision).fetch()
    hub.forget()
    expected = Checkpoint.open(saved)
    online = Checkpoint.open("org/many", revision=revision)
    assert torch.equal(online["lm_head.weight"], expected["lm_head.weight"])
    assert not hub.sent
    _offline(monkeypatch)
    again = Checkpoint.open("org/many", revision=revision)
    assert (again.location, again.kind) == (f"org/many@{commit}", "sharded safetensors")
    assert again.digest() == expected.digest()


def test_the_cache_answers_when_the_hub_is_out_of_reach(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = _saved(tmp_path / "saved")
    hub.push("org/one", saved)
    hub.push("org/part", saved)
    Checkpoint.open("org/one").fetch()
    Checkpoint.open("org/part")
    with fake_hub.serve(FakeHub()) as closed:
        pass
    fake_hub.use(closed, tmp_path / "cache", monkeypatch)
    assert Checkpoint.open("org/one").digest() == Checkpoint.open(saved).digest()
    assert "only in part in the Hub's cache, and the Hub can't be reached" in _refusal("org/part")


def test_a_model_of_which_the_cache_has_no_weights_is_refused_offline(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("org/one", _saved(tmp_path / "one"))
    commit = hub.push("org/many", _saved(tmp_path / "many", shard_size="515KB"))
    Checkpoint.open("org/one")
    Checkpoint.open("org/many").fetch()
    next((tmp_path / "cache" / "models--org--many" / "snapshots" / commit).glob("*-00002-*")).unlink()
    _offline(monkeypatch)
    for name in ("org/one", "org/many"):
        message = _refusal(name)
        assert message.startswith(
            f"{name}: is no local path and only in part in the Hub's cache, and the Hub"
        )
        assert message.endswith("connect, or give a local directory")


def test_shards_are_described_each_and_fetched_together(hub: FakeHub, tmp_path: Path) -> None:
    saved = _saved(tmp_path / "saved", shard_size="515KB")
    shards = sorted(saved.glob("*.safetensors"))
    assert len(shards) == 3
    hub.push("org/many", saved)
    checkpoint = Checkpoint.open("org/many")
    assert checkpoint.kind == "sharded safetensors"
    assert checkpoint.specs == Checkpoint.open(saved).specs
    sizes = {f"org/many/{path.name}": path.stat().st_size for path in shards}
    assert {key: hub.sent[key] for key in sizes} == {
        key: min(size, FIRST_BYTES) for key, size in sizes.items()
    }
    hub.forget()
    read: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda name=name: read.append(checkpoint[name]))
        for name in list(checkpoint) * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 2 * len(checkpoint)
    assert hub.sent == sizes
    expected = Checkpoint.open(saved)
    assert all(torch.equal(checkpoint[name], expected[name]) for name in expected)


def test_a_shard_that_is_in_the_cache_already_is_read_there(hub: FakeHub, tmp_path: Path) -> None:
    saved = _saved(tmp_path / "saved", shard_size="515KB")
    commit = hub.push("org/many", saved)
    first, *others = sorted(path.name for path in saved.glob("*.safetensors"))
    huggingface_hub.hf_hub_download("org/many", first, revision=commit)
    hub.forget()
    checkpoint = Checkpoint.open("org/many")
    assert not hub.requests[f"org/many/{first}"]
    assert torch.equal(checkpoint["lm_head.weight"], Checkpoint.open(saved)["lm_head.weight"])
    assert [hub.requests[f"org/many/{name}"] for name in (first, *others)] == [0, 2, 2]


def test_a_long_header_takes_a_second_request(hub: FakeHub, tmp_path: Path) -> None:
    tensors = {f"layer.{number}.weight": torch.ones(100) for number in range(2000)}
    save_file(tensors, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    assert end > FIRST_BYTES
    (tmp_path / "repository").mkdir()
    hub.push("org/long", tmp_path / "repository", model__safetensors=data)
    assert list(Checkpoint.open("org/long")) == sorted(tensors)
    assert (hub.weight_requests("org/long"), hub.weight_bytes("org/long")) == (2, FIRST_BYTES + end)


def test_a_server_that_ignores_ranges_is_not_read_to_the_end(hub: FakeHub, tmp_path: Path) -> None:
    size = 64 << 20
    (tmp_path / "repository").mkdir()
    data = save({"x": torch.zeros(size, dtype=torch.uint8)})
    hub.push("org/large", tmp_path / "repository", model__safetensors=data)
    hub.ranges = False
    assert Checkpoint.open("org/large").nbytes == size
    assert hub.weight_bytes("org/large") < size / 2  # the sockets hold some megabytes


def _push_triple(hub: FakeHub, tmp_path: Path, words: bool, **target: Any) -> None:
    base = models.tiny_llama(0, vocab_size=ROWS)
    for name, model in (
        ("base", base),
        ("tuned", perturbed(models.tiny_llama(0, vocab_size=ROWS), 1e-2, seed=1)),
        ("target", models.tiny_llama(2, **{"vocab_size": ROWS, **target})),
    ):
        model.save_pretrained(tmp_path / name)
        if words:
            tiny.tokenizer().save_pretrained(tmp_path / name)
        hub.push(f"org/{name}", tmp_path / name)


NAMES = ("org/base", "org/tuned", "org/target")


def checked(**options: Any) -> Findings:
    """Check the three as `gradfix check` does."""
    models = dict(zip(("source_base", "source_tuned", "target_base"), NAMES, strict=True))
    return check_inputs(validate(CheckRecipe, dict(models), "check"), **options)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"intermediate_size": 48}, "shapes differ from the task vector's"),
        ({"vocab_size": ROWS + 8}, f"{ROWS} rows against {ROWS + 8} of the target: the vocabularies differ"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_any_weights_are_fetched(
    hub: FakeHub, tmp_path: Path, target: dict[str, Any], message: str
) -> None:
    _push_triple(hub, tmp_path, words=False, **target)
    found = checked()
    assert not found.ok
    assert message in found.findings[-1].text
    assert [hub.weight_bytes(name) for name in NAMES] == [FIRST_BYTES] * 3


def test_other_vocabularies_are_known_before_any_weights_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    _push_triple(hub, tmp_path, words=True, vocab_size=ROWS + 8)
    placement = place(TaskVector.between("org/base", "org/tuned"), Checkpoint.open("org/target"))
    words = len(tiny.tokenizer())
    assert placement.matched_tokens["lm_head.weight"] == (words, ROWS + 8)
    assert [hub.weight_bytes(name) for name in NAMES] == [FIRST_BYTES] * 3
    told: dict[str, list[int]] = {}
    found = checked(tell=lambda said: told.update({said.text: [hub.weight_bytes(name) for name in NAMES]}))
    warning = f"lm_head.weight: the vocabularies differ; {words} of {ROWS + 8} rows"
    assert [told[text] for text in told if text.startswith(warning)] == [[2 * FIRST_BYTES] * 3]
    assert found.ok
    assert found.cosine_tuned is not None


def test_a_model_is_loaded_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    hub.push("org/classifier", tiny.save_tiny_bert_classifier(tmp_path / "saved"))
    task = get_task("text-classification")
    checkpoint = Checkpoint.open("org/classifier")
    assert checkpoint.directory is not None
    task.bind(checkpoint.directory)
    assert not (checkpoint.directory / "model.safetensors").exists()
    model = TargetModel.load(task, checkpoint, place(own_weights(checkpoint), checkpoint))
    state = model.model.state_dict()
    assert all(torch.equal(state[name], checkpoint[name]) for name in checkpoint)


def test_the_commit_that_was_checked_is_the_one_fetched(hub: FakeHub, tmp_path: Path) -> None:
    old, new = _saved(tmp_path / "old", 0), _saved(tmp_path / "new", 1)
    hub.push("org/one", old)
    checkpoint = Checkpoint.open("org/one")
    hub.push("org/one", new)
    assert torch.equal(checkpoint["lm_head.weight"], Checkpoint.open(old)["lm_head.weight"])


def test_weights_that_are_not_what_their_header_said_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.push("org/one", _saved(tmp_path / "saved"))
    checkpoints = [Checkpoint.open("org/one") for _ in range(2)]
    other = save({"lm_head.weight": torch.zeros(3)})
    hub.commits["org/one"][commit]["model.safetensors"] = other
    for act in (checkpoints[0].fetch, lambda: checkpoints[1]["lm_head.weight"]):
        with pytest.raises(GradfixError, match="is not the file whose header was read on the Hub") as refusal:
            act()
        expected = f"tensor 'lm_head.weight': expected torch.float32 [{ROWS}, 16], found torch.float32 [3]"
        assert expected in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_weights_that_vanished_are_refused_in_one_line(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.push("org/one", _saved(tmp_path / "saved"))
    checkpoint = Checkpoint.open("org/one")
    hub.gone = True
    assert f"org/one@{commit}/model.safetensors: its header can't be read from the Hub" in _refusal("org/one")
    with pytest.raises(GradfixError, match=f"^org/one@{commit}: its weights can't be downloaded") as refusal:
        checkpoint.fetch()
    assert "\n" not in str(refusal.value)
    hub.gone = False
    checkpoint.fetch()


def test_a_full_disk_is_seen_before_the_download(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = _saved(tmp_path / "saved")
    size = (saved / "model.safetensors").stat().st_size
    hub.push("org/one", saved)
    checkpoint = Checkpoint.open("org/one")
    hub.forget()
    monkeypatch.setattr(remote, "free_bytes", lambda _: size - 1)
    with pytest.raises(
        GradfixError, match=f"{size} bytes needed for the weights of org/one, {size - 1} free"
    ):
        checkpoint.fetch()
    assert not hub.sent
    monkeypatch.setattr(remote, "free_bytes", lambda _: size)
    checkpoint.fetch()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        (struct.pack("<Q", 10) + b"{}", "is truncated: expected a header of 10 bytes, found 2"),
        (struct.pack("<Q", 20) + b"{" * 20, "its header: is not valid JSON"),
        (save({"x": torch.zeros(4)})[:-1], "is truncated or its offsets are out of range"),
        (b"", "is empty (0 bytes)"),
    ],
)
def test_a_damaged_file_is_refused_by_its_header(
    hub: FakeHub, tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "repository").mkdir()
    commit = hub.push("org/one", tmp_path / "repository", model__safetensors=data)
    assert f"org/one@{commit}/model.safetensors: {message}" in _refusal("org/one")


def test_an_answer_that_is_cut_short_or_of_no_length_is_refused(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repository").mkdir()
    hub.push("org/one", tmp_path / "repository", model__safetensors=save({"x": torch.zeros(4)}))
    real = remote_header._read_range

    def cut(*arguments: Any) -> tuple[bytes, int]:
        data, size = real(*arguments)
        return data[:20], size

    with monkeypatch.context() as patched:
        patched.setattr(remote_header, "_read_range", cut)
        assert "the Hub sent 20 bytes of a header of" in _refusal("org/one")
    hub.sized = False
    assert "it doesn't tell the length of the file" in _refusal("org/one")


def test_a_shard_that_is_not_in_the_repository_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    index = {"weight_map": {"x": "model-1.safetensors"}}
    (tmp_path / "repository" / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.push("org/many", tmp_path / "repository")
    assert "names the shard 'model-1.safetensors', which is missing" in _refusal("org/many")


def test_a_single_file_and_an_index_that_contradict_each_other_are_refused(
    hub: FakeHub, tmp_path: Path
) -> None:
    saved = _saved(tmp_path / "saved", shard_size="515KB")
    hub.push("org/many", saved, model__safetensors=save({"x": torch.zeros(1)}))
    assert "holds both model.safetensors and model.safetensors.index.json" in _refusal("org/many")
    assert not hub.weight_bytes("org/many")


def test_files_of_torch_save_are_fetched_at_once(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    torch.save({"x": torch.arange(3.0)}, tmp_path / "repository" / "pytorch_model.bin")
    hub.push("org/old", tmp_path / "repository")
    checkpoint = Checkpoint.open("org/old")
    assert (checkpoint.kind, checkpoint["x"].tolist()) == ("PyTorch file", [0.0, 1.0, 2.0])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_an_adapter_is_fetched_and_its_base_is_not(hub: FakeHub, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    saved = _saved(tmp_path / "saved")
    hub.push("org/base", saved)
    model = peft.get_peft_model(
        models.tiny_llama(0, vocab_size=ROWS), peft.LoraConfig(target_modules=["q_proj"], r=2)
    )
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/base"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    hub.push("org/adapter", tmp_path / "adapter")
    checkpoint = Checkpoint.open("org/adapter")
    local = Checkpoint.open(tmp_path / "adapter", base=saved)
    assert checkpoint.specs == local.specs
    assert hub.weight_bytes("org/base") == FIRST_BYTES
    assert checkpoint.digest() == local.digest()
    assert all(torch.equal(checkpoint[name], local[name]) for name in local)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("org/absent", "org/absent: is neither a local path nor a model on the Hub that you may read"),
        ("org/one@v2", r"org/one (revision v2): has no such revision"),
    ],
)
def test_refusals_of_the_hub(hub: FakeHub, tmp_path: Path, location: str, message: str) -> None:
    hub.push("org/one", _saved(tmp_path / "saved"))
    assert message in _refusal(location)


def _doubled(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model that its config ties and that stores both names, as T5 of one release does and of another not."""
    saved = _saved(tmp_path / "saved", tie_word_embeddings=True)
    tensors = load_file(saved / "model.safetensors")
    return saved, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


@pytest.mark.parametrize("tied", [True, False])
def test_copies_of_a_tied_tensor_are_judged_by_a_glance(hub: FakeHub, tmp_path: Path, tied: bool) -> None:
    saved, tensors = _doubled(tmp_path)
    if not tied:
        tensors["lm_head.weight"] += 0.01
    save_file(tensors, saved / "model.safetensors")
    hub.push("org/one", saved)
    checkpoint = Checkpoint.open("org/one")
    assert ("lm_head.weight" in checkpoint.ties) == tied
    assert checkpoint.specs == Checkpoint.open(saved).specs
    assert hub.weight_bytes("org/one") == FIRST_BYTES + 2 * GLANCE
    assert torch.equal(checkpoint.read("lm_head.weight"), tensors["lm_head.weight"])


def test_a_glance_that_was_wrong_is_seen_when_the_weights_are_here(hub: FakeHub, tmp_path: Path) -> None:
    saved, tensors = _doubled(tmp_path)
    tensors["lm_head.weight"][0] += 1
    save_file(tensors, saved / "model.safetensors")
    hub.push("org/one", saved)
    for act in (Checkpoint.fetch, lambda checkpoint: checkpoint["model.norm.weight"]):
        for link in (tmp_path / "cache").rglob("model.safetensors"):
            link.unlink()
        checkpoint = Checkpoint.open("org/one")
        assert "lm_head.weight" in checkpoint.ties
        with pytest.raises(
            GradfixError, match=r"'lm_head\.weight' has other values than 'model\."
        ) as refusal:
            act(checkpoint)
        assert "\n" not in str(refusal.value)
        again = Checkpoint.open("org/one")
        assert torch.equal(again["lm_head.weight"], tensors["lm_head.weight"])
        assert "lm_head.weight" in again.specs


def test_without_ranges_copies_are_compared_whole(hub: FakeHub, tmp_path: Path) -> None:
    saved, tensors = _doubled(tmp_path)
    tensors["lm_head.weight"][0] += 1
    save_file(tensors, saved / "model.safetensors")
    hub.push("org/one", saved)
    hub.ranges = False
    assert "lm_head.weight" in Checkpoint.open("org/one").specs
