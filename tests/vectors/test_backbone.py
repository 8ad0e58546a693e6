"""Three models that are not spelled, tied or shaped alike: mapped, or refused in one line; never silently wrong."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradfix.checkpoints import Checkpoint
from gradfix.errors import GradfixError
from gradfix.vectors.apply import apply
from gradfix.vectors.placement import place
from gradfix.vectors.task_vector import TaskVector
from tests.models import tiny_bert_masked_lm, tiny_clip, tiny_gpt2, tiny_llama, tiny_qwen2
from tests.triples import perturbed

State = dict[str, Tensor]
Change = Callable[[State], Mapping[str, Tensor]]


def weights(folder: Path) -> State:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def rewrite(folder: Path, change: Change, **config: Any) -> Path:
    """Change the tensors and the configuration of a saved model."""
    state = {name: value.clone() for name, value in change(weights(folder)).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


class Trio:
    """θ_A, θ_A^ft and θ_B of one build, in folders a, t and b."""

    def __init__(self, root: Path, build: Callable[..., Any], **settings: Any) -> None:
        self.root = root
        for name, scale, seed in (("a", 0.0, 0), ("t", 0.1, 1), ("b", 0.1, 2)):
            perturbed(build(seed=0, **settings), scale, seed=seed).save_pretrained(root / name)
        self.a, self.t, self.b = (weights(root / name) for name in "atb")

    def change(self, name: str, change: Change = lambda state: state, **config: Any) -> None:
        rewrite(self.root / name, change, **config)

    def vector(self) -> TaskVector:
        return TaskVector.between(self.root / "a", self.root / "t")

    def place(self) -> Any:
        return place(self.vector(), Checkpoint.open(self.root / "b"))

    def apply(self) -> State:
        apply(self.vector(), self.root / "b", output=self.root / "o")
        return weights(self.root / "o")

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "o" / "config.json").read_text())
        return found


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-6)


HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def own_head(state: State) -> State:
    return {**state, HEAD: state[TABLE] + 0.01 * torch.randn(state[TABLE].shape)}


@pytest.mark.parametrize("untied", ["t", "b", "a", "ab", "at", "tb", "atb"])
def test_a_tied_name_stands_for_its_source_in_whichever_model_ties_it(untied: str, tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_qwen2)
    for name in untied:
        trio.change(name, own_head, tie_word_embeddings=False)
    head = {name: weights(tmp_path / name).get(HEAD, weights(tmp_path / name)[TABLE]) for name in "atb"}
    written = trio.apply()
    assert close(written[TABLE], trio.b[TABLE] + trio.t[TABLE] - trio.a[TABLE])
    expected = head["b"] + head["t"] - head["a"]
    assert close(written.get(HEAD, written[TABLE]), expected)
    model = tf.Qwen2ForCausalLM.from_pretrained(tmp_path / "o")
    assert close(model.lm_head.weight.detach(), expected)
    assert trio.config["tie_word_embeddings"] == (HEAD not in written)


def test_what_one_switch_unties_is_all_stored(tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_bert_masked_lm)
    decoder, table = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
    trio.change(
        "t",
        lambda state: {
            **state,
            decoder: state[table] + 1,
            "cls.predictions.decoder.bias": state["cls.predictions.bias"],
        },
        tie_word_embeddings=False,
    )
    written = trio.apply()
    assert close(written[decoder], trio.b[table] + trio.t[table] + 1 - trio.a[table])
    _, report = tf.BertForMaskedLM.from_pretrained(tmp_path / "o", output_loading_info=True)
    assert not report["missing_keys"]


def test_buffers_are_no_weights(tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_llama)
    frequencies = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(4) for i in range(2)}
    trio.change("t", lambda state: {**state, **frequencies})
    assert trio.apply().keys() == trio.b.keys()


def test_the_mask_that_gpt2_once_stored_is_no_weight(tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_gpt2)
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    trio.change("a", lambda state: {**state, **masks})
    assert trio.apply().keys() == trio.b.keys()


def renumbered(state: State) -> State:
    return {name.replace("layers.", "blocks.0."): value for name, value in state.items()}


INSIDE: dict[str, tuple[str, Change, str]] = {
    "a deeper target": (
        "b",
        lambda state: {
            **state,
            **{n.replace("layers.1", "layers.2"): v for n, v in state.items() if "layers.1" in n},
        },
        r"the task vector: has 2 layers, .*b has 3 ",
    ),
    "a shallower target": (
        "b",
        lambda state: {n: v for n, v in state.items() if "layers.1" not in n},
        r"the task vector: has 2 layers, .*b has 1 ",
    ),
    "a deeper fine-tune": (
        "t",
        lambda state: {
            **state,
            **{n.replace("layers.1", "layers.2"): v for n, v in state.items() if "layers.1" in n},
        },
        r"t: has 3 layers, .*a has 2 ",
    ),
    "a pruned fine-tune": (
        "t",
        lambda state: {n: v for n, v in state.items() if "layers.0" not in n},
        r"t: has 1 layers, .*a has 2 ",
    ),
    "additions inside the layers": (
        "t",
        lambda state: {**state, "model.layers.0.adapter.down.weight": torch.ones(2, 16)},
        r"layers\.0\.adapter\.down\.weight only in .*t; all models",
    ),
    "a tensor of a layer is gone": (
        "t",
        lambda state: {n: v for n, v in state.items() if n != "model.layers.1.mlp.up_proj.weight"},
        r"layers\.1\.mlp\.up_proj\.weight only in .*a; all models",
    ),
    "other names inside the layers": (
        "t",
        lambda state: {n.replace("up_proj", "w3"): v for n, v in state.items()},
        r"mlp\.w3\.weight.* only in .*t; .*mlp\.up_proj\.weight.* only in .*a",
    ),
    "other lists of layers": ("t", renumbered, "can't be matched inside the network"),
    "a target with other names inside": (
        "b",
        lambda state: {n.replace("up_proj", "w3"): v for n, v in state.items()},
        r"mlp\.up_proj\.weight.* only in the task vector; .*mlp\.w3\.weight.* only in .*b",
    ),
    "flattened parameters": (
        "t",
        lambda state: {
            f"_fsdp_wrapped_module.model.layers.{i}._fsdp_wrapped_module._flat_param": torch.ones(9)
            for i in range(2)
        },
        "no tensor has a counterpart",
    ),
    "an input of another kind": (
        "t",
        lambda state: {n.replace("embed_tokens", "patch_embedding"): v for n, v in state.items()},
        r"patch_embedding\.weight only in .*t; .*embed_tokens\.weight only in .*a",
    ),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_what_differs_inside_the_network_is_refused(kind: str, tmp_path: Path) -> None:
    name, change, message = INSIDE[kind]
    trio = Trio(tmp_path, tiny_llama)
    trio.change(name, change)
    with pytest.raises(GradfixError, match=message) as error:
        trio.place()
    assert "\n" not in str(error.value)


def test_a_target_with_more_in_the_same_layers_keeps_it(tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_llama)
    tf.Qwen2ForCausalLM(
        tf.Qwen2Config(**{**tiny_llama().config.to_diff_dict(), "tie_word_embeddings": False})
    ).save_pretrained(tmp_path / "b")
    trio.b = weights(tmp_path / "b")
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert bias in trio.place().untouched
    written = trio.apply()
    assert torch.equal(written[bias], trio.b[bias])
    assert all(close(written[name], trio.b[name] + trio.t[name] - trio.a[name]) for name in trio.t)


def test_nothing_of_the_target_goes_where_the_architecture_stays(tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_llama)
    trio.change(
        "t",
        lambda state: {**{n: v for n, v in state.items() if n != HEAD}, "score.weight": torch.ones(2, 16)},
    )
    written = trio.apply()
    assert torch.equal(written[HEAD], trio.b[HEAD])
    assert trio.place().dropped == []


def test_a_new_head_takes_the_place_of_the_old_one_and_that_is_said(tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_bert_masked_lm)
    tuned = tf.BertForSequenceClassification.from_pretrained(tmp_path / "a", num_labels=3)
    perturbed(tuned, 0.1, seed=3).save_pretrained(tmp_path / "t")
    placement = trio.place()
    assert placement.dropped
    assert all(name.startswith("cls.") for name in placement.dropped)
    trio.apply()
    written, report = tf.BertForSequenceClassification.from_pretrained(
        tmp_path / "o", output_loading_info=True
    )
    assert not report["missing_keys"] | report["unexpected_keys"]
    state, t = written.state_dict(), tuned.state_dict()
    for name in state:
        expected = trio.b[name] + t[name] - trio.a[name] if name in trio.a else t[name]
        assert close(state[name], expected)


@pytest.mark.parametrize("spelled", ["stored", "in memory"])
def test_a_tower_tuned_alone_moves_the_pair_of_towers(spelled: str, tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_clip)
    tower = perturbed(tf.CLIPVisionModel.from_pretrained(tmp_path / "a"), 0.1, seed=3)
    tower.save_pretrained(tmp_path / "t", save_original_format=spelled == "stored")
    written = trio.apply()
    tuned = {f"vision_model.{name}": value for name, value in tower.state_dict().items()}
    assert written.keys() == trio.b.keys()
    for name, value in written.items():
        delta = tuned[name] - trio.a[name] if name in tuned else 0
        assert close(value, trio.b[name] + delta)
    assert "vision_model.encoder.layers.0.mlp.fc1.weight" in tuned


def test_a_visual_tower_saved_alone_is_not_laid_onto_the_text_tower(tmp_path: Path) -> None:
    def tower(prefix: str, table: str, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        names = [
            table,
            "positional_embedding",
            *(f"transformer.resblocks.{i}.mlp.c_fc.weight" for i in range(2)),
        ]
        return {prefix + name: torch.randn(4, 4, generator=generator) for name in names}

    base = {**tower("visual.", "conv1.weight", 0), **tower("", "token_embedding.weight", 1)}
    save_file(base, tmp_path / "a.safetensors")
    torch.save(
        {name: value + 1 for name, value in tower("", "conv1.weight", 0).items()}, tmp_path / "visual.pt"
    )
    tau = TaskVector.between(tmp_path / "a.safetensors", tmp_path / "visual.pt")
    placed = place(tau, Checkpoint.open(tmp_path / "a.safetensors")).vector
    assert sorted(placed) == sorted(tower("visual.", "conv1.weight", 0))
    assert not tau.additions.specs
    save_file(tower("", "token_embedding.weight", 1), tmp_path / "text.safetensors")
    with pytest.raises(
        GradfixError, match=r"conv1\.weight only in .*visual\.pt; token_embedding\.weight only in"
    ):
        TaskVector.between(tmp_path / "text.safetensors", tmp_path / "visual.pt")


def test_towers_of_two_kinds_are_not_laid_onto_each_other(tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_clip)
    tf.CLIPTextModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "text")
    tower = tf.CLIPVisionModel.from_pretrained(tmp_path / "a")
    tower.save_pretrained(tmp_path / "t", save_original_format=False)
    with pytest.raises(
        GradfixError, match=r"can't be matched inside the network|no tensor has a counterpart"
    ):
        TaskVector.between(tmp_path / "text", tmp_path / "t")
    assert trio.a


@pytest.mark.parametrize("name", "atb")
def test_wrappers_are_left_out_of_names_wherever_they_stand(name: str, tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_llama)
    trio.change(
        name,
        lambda state: {
            "_orig_mod.module."
            + n.replace("self_attn.", "_fsdp_wrapped_module.self_attn._checkpoint_wrapped_module."): v
            for n, v in state.items()
        },
    )
    written = trio.apply()
    assert written.keys() == trio.b.keys()
    assert all(close(written[n], trio.b[n] + trio.t[n] - trio.a[n]) for n in trio.b)
    tf.LlamaForCausalLM.from_pretrained(tmp_path / "o")


def test_a_saved_task_vector_keeps_its_ties(tmp_path: Path) -> None:
    trio = Trio(tmp_path, tiny_qwen2)
    trio.change("b", own_head, tie_word_embeddings=False)
    trio.vector().save(tmp_path / "tau.safetensors")
    apply(TaskVector.load(tmp_path / "tau.safetensors"), tmp_path / "b", output=tmp_path / "o")
    expected = weights(tmp_path / "b")[HEAD] + trio.t[TABLE] - trio.a[TABLE]
    assert close(weights(tmp_path / "o")[HEAD], expected)
