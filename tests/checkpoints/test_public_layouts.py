"""CLIP and ViT as open_clip, timm and the public collections of fine-tunes store them: the same numbers."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradfix.checkpoints import Checkpoint, TensorSpec
from gradfix.checkpoints.expressions import Given
from gradfix.checkpoints.layouts import InMemory, layout_of
from gradfix.checkpoints.public_layouts import public_layout
from gradfix.checkpoints.reading import registries
from gradfix.errors import GradfixError
from gradfix.transport.checks import Findings, open_models
from gradfix.vectors.placement import own_weights, place
from gradfix.vectors.task_vector import TaskVector
from tests import tiny
from tests.builders import gradfix, tuned_from

Weights = dict[str, Tensor]


def _tower(weights: Mapping[str, Tensor], tower: str) -> Weights:
    """A transformer's blocks as open_clip names and fuses them."""
    found = {}
    layers = {name.split(".")[3] for name in weights if name.startswith(f"{tower}.encoder.layers.")}
    for layer in layers:
        inside, out = f"{tower}.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            parts = [weights[f"{inside}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{out}.attn.in_proj_{end}"] = torch.cat(parts)
            for new, old in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                found[f"{out}.{new}.{end}"] = weights[f"{inside}.{old}.{end}"]
    return found


def visual(weights: Mapping[str, Tensor]) -> Weights:
    embeddings = "vision_model.embeddings"
    return {
        **_tower(weights, "vision_model"),
        "class_embedding": weights[f"{embeddings}.class_embedding"],
        "positional_embedding": weights[f"{embeddings}.position_embedding.weight"],
        "conv1.weight": weights[f"{embeddings}.patch_embedding.weight"],
        "proj": weights["visual_projection.weight"].T.contiguous(),
        **{f"ln_pre.{end}": weights[f"vision_model.pre_layrnorm.{end}"] for end in ("weight", "bias")},
        **{f"ln_post.{end}": weights[f"vision_model.post_layernorm.{end}"] for end in ("weight", "bias")},
    }


def open_clip_names(weights: Mapping[str, Tensor]) -> Weights:
    return {
        **{f"visual.{name}": value for name, value in visual(weights).items()},
        **_tower(weights, "text_model"),
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": weights["text_model.final_layer_norm.weight"],
        "ln_final.bias": weights["text_model.final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T.contiguous(),
        "logit_scale": weights["logit_scale"],
    }


def _prefixed(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def _encoder(weights: Mapping[str, Tensor]) -> Weights:
    """A classifier around an image encoder, as the 8-task collection's."""
    head = {"classification_head.weight": torch.ones(3, 16), "classification_head.bias": torch.ones(3)}
    return {**_prefixed("image_encoder.model.", open_clip_names(weights)), **head}


LAYOUTS: dict[str, Callable[[Mapping[str, Tensor], Path], Path]] = {
    "open_clip": lambda weights, path: _saved(open_clip_names(weights), path / "open_clip.safetensors"),
    "openai": lambda weights, path: _torch(
        {**open_clip_names(weights), "input_resolution": torch.tensor(16), "attn_mask": torch.zeros(12, 12)},
        path / "openai.pt",
    ),
    "image encoder": lambda weights, path: _torch(
        {"model_state_dict": _prefixed("model.", open_clip_names(weights)), "epoch": 3}, path / "encoder.pt"
    ),
    "classifier": lambda weights, path: _torch({"state_dict": _encoder(weights)}, path / "classifier.pt"),
    "vision tower": lambda weights, path: _torch(
        _prefixed("model.visual.", visual(weights)), path / "tower.pt"
    ),
    "bare vision tower": lambda weights, path: _torch(visual(weights), path / "bare.pt"),
}


def _saved(weights: Weights, path: Path) -> Path:
    save_file(weights, path)
    return path


def _torch(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clips")
    base = tiny.save_tiny_clip(root / "old", seed=0)
    return {
        "base": base,
        "tuned": tuned_from(root / "mine", base, "AutoModel"),
        "target": tiny.save_tiny_clip(root / "new", seed=2),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_read_as_the_same_task_vector(
    layout: str, clips: dict[str, Path], tmp_path: Path
) -> None:
    target = Checkpoint.open(clips["target"])
    expected = place(TaskVector.between(clips["base"], clips["tuned"]), target).vector
    (tmp_path / "old").mkdir()
    write = LAYOUTS[layout]
    base, tuned = (
        write(load_file(clips[role] / "model.safetensors"), folder)
        for role, folder in (("base", tmp_path / "old"), ("tuned", tmp_path))
    )
    for source in (TaskVector.between(clips["base"], tuned), TaskVector.between(base, tuned)):
        assert not source.additions.specs
        found = place(source, target)
        assert not found.unplaced
        vision = [name for name in expected if name.startswith(("vision_model", "visual_projection"))]
        assert set(vision) <= set(found.vector)
        for name in found.vector:
            assert torch.equal(found.vector[name], expected[name]), name
            rows = slice(1, 2) if expected[name].ndim else None
            assert torch.equal(found.vector.read(name, rows), expected.read(name, rows)), name


def test_a_target_of_that_layout_keeps_its_own_names(clips: dict[str, Path], tmp_path: Path) -> None:
    path = LAYOUTS["open_clip"](load_file(clips["target"] / "model.safetensors"), tmp_path)
    expected = TaskVector.between(clips["base"], clips["tuned"])
    vector = place(expected, Checkpoint.open(path)).vector
    assert set(vector) == set(load_file(path))
    fused = vector["visual.transformer.resblocks.1.attn.in_proj_weight"]
    parts = [expected[f"vision_model.encoder.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(fused, torch.cat(parts))
    assert torch.equal(vector["visual.proj"], expected["visual_projection.weight"].T)


@pytest.mark.slow
def test_a_transport_from_any_layout_writes_the_same_bytes(clips: dict[str, Path], tmp_path: Path) -> None:
    rows = tiny.save_image_folder(tmp_path / "rows", tiny.images(6))
    from transformers import CLIPVisionModel

    tower = tmp_path / "tower"
    CLIPVisionModel.from_pretrained(clips["tuned"]).save_pretrained(tower)
    weights = load_file(clips["tuned"] / "model.safetensors")
    without_projection = dict(
        weights,
        **{
            "visual_projection.weight": load_file(clips["base"] / "model.safetensors")[
                "visual_projection.weight"
            ]
        },
    )
    whole = tmp_path / "whole"
    shutil.copytree(clips["tuned"], whole)
    save_file(without_projection, whole / "model.safetensors", metadata={"format": "pt"})
    written = {}
    for number, tuned in enumerate((clips["tuned"], LAYOUTS["classifier"](weights, tmp_path), whole, tower)):
        output = tmp_path / f"out{number}"
        done = gradfix(
            "transport", "--source-base", clips["base"], "--source-tuned", tuned, "--target-base", clips["target"],
            "--task", "zero-shot-image-classification", "--support", rows, "--alpha", 1, "--output", output,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        written[number] = (output / "model.safetensors").read_bytes()
    assert written[0] == written[1]
    assert written[2] == written[3]  # a tower alone has no projection
    assert written[0] != written[2]


def test_another_activation_is_named(clips: dict[str, Path], tmp_path: Path) -> None:
    from transformers import CLIPVisionModel

    tower = tmp_path / "tower"
    CLIPVisionModel.from_pretrained(clips["tuned"]).save_pretrained(tower)
    config = (tower / "config.json").read_text()
    (tower / "config.json").write_text(config.replace("quick_gelu", "gelu"))
    found = Findings()
    open_models(str(clips["base"]), str(tower), str(clips["target"]), found)
    assert [each.text for each in found.findings if "hidden_act 'gelu' against 'quick_gelu'" in each.text]
    assert not any("model_type" in each.text for each in found.findings)
    state = LAYOUTS["image encoder"](load_file(clips["tuned"] / "model.safetensors"), tmp_path)
    found = Findings()
    open_models(str(clips["base"]), str(state), str(clips["target"]), found)
    assert any("does not state its activation" in each.text for each in found.findings)


def _tower_of(place: Path, folder: Path) -> Path:
    """The vision tower of a model alone, as transformers saves it."""
    import transformers

    family = json.loads((place / "config.json").read_text())["model_type"]
    kind = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}[family]
    getattr(transformers, kind).from_pretrained(place).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_target_of_one_tower_or_file_takes_its_text_side_from_elsewhere(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    models: dict[str, Path] = request.getfixturevalue(f"{family}s")
    rows = tiny.save_image_folder(tmp_path / "rows", tiny.images(6))
    towers = {role: _tower_of(place, tmp_path / f"{role}-tower") for role, place in models.items()}
    weights = load_file(models["target"] / "model.safetensors")
    tower = towers["target"]
    places = {"tower": tower, "whole": models["target"]}
    if family == "clip":
        places["file"] = LAYOUTS["bare vision tower"](weights, tmp_path)
        places["whole file"] = LAYOUTS["open_clip"](weights, tmp_path)
    else:
        places["file"] = _saved(siglip_trunk(weights), tmp_path / "trunk.safetensors")
    command = (
        "transport", "--source-base", towers["base"], "--source-tuned", towers["tuned"],
        "--task", "zero-shot-image-classification", "--support", rows, "--mask", "none", "--alpha", 0.5, "--test", rows,
    )  # fmt: skip
    scores, written = {}, {}
    (tmp_path / "out").mkdir()
    for name, location in places.items():
        text = ["--text-from", models["target"]] if name != "whole" else []
        output = tmp_path / "out" / name
        done = gradfix(*command, "--target-base", location, "--output", output, *text)
        assert done.exit_code == 0, done.output
        record = json.loads((output / "gradfix.json").read_text())
        scores[name] = record["judgement"]["transported"]["loss"]
        written[name] = place(own_weights(Checkpoint.open(output)), Checkpoint.open(models["target"])).vector
    assert len(set(scores.values())) == 1
    vision = [name for name in weights if name.startswith("vision_model")]
    for name, laid in written.items():
        assert all(torch.equal(laid[each], written["whole"][each]) for each in vision), name
    again = gradfix(
        "evaluate", "--model", tmp_path / "out" / "tower", "--task", "zero-shot-image-classification",
        "--data", rows, "--text-from", models["target"], "--json",
    )  # fmt: skip
    assert json.loads(again.stdout)["loss"] == pytest.approx(scores["whole"])
    alone = gradfix(*command, "--target-base", tower, "--output", tmp_path / "alone")
    assert "is a vision tower alone" in alone.output
    assert "--text-from" in alone.output
    idle = gradfix(
        *command,
        "--target-base",
        models["target"],
        "--text-from",
        models["base"],
        "--output",
        tmp_path / "idle",
    )
    assert "has a text side of its own; leave it out" in idle.output
    config = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    other = gradfix(
        *command, "--target-base", tower, "--text-from", models["target"], "--output", tmp_path / "other"
    )
    assert "is no vision tower of" in other.output
    assert "hidden_act 'relu' against" in other.output


def timm_names(weights: Mapping[str, Tensor]) -> Weights:
    """A plain vision transformer as timm names it."""
    plain = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "vit.layernorm": "norm",
        "classifier": "head",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    found: Weights = {}
    for name, value in weights.items():
        new = name.replace("vit.encoder.layer.", "blocks.")
        for old, other in plain.items():
            new = new.replace(old, other)
        if "attention.attention.query" in new:
            parts = [weights[name.replace("query", part)] for part in ("query", "key", "value")]
            found[new.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
        elif "attention.attention" not in new:
            found[new] = value
    return found


def siglip_names(weights: Mapping[str, Tensor]) -> Weights:
    """A SigLIP as open_clip names it: timm's vision transformer, and a text tower of open_clip's."""
    text = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        **{f"text_model.final_layer_norm.{end}": f"ln_final.{end}" for end in ("weight", "bias")},
        **{f"text_model.head.{end}": f"text_projection.{end}" for end in ("weight", "bias")},
    }
    return {
        **_prefixed("visual.trunk.", siglip_trunk(weights)),
        **_prefixed("text.", _tower(weights, "text_model")),
        **{f"text.{new}": weights[old] for old, new in text.items()},
        **{name: weights[name].reshape(()) for name in ("logit_scale", "logit_bias")},
    }


def siglip_trunk(weights: Mapping[str, Tensor]) -> Weights:
    """A vision tower of SigLIP as timm names it."""
    plain = {
        "vision_model.embeddings.patch_embedding": "patch_embed.proj",
        "vision_model.post_layernorm": "norm",
        "vision_model.head.layernorm": "attn_pool.norm",
        "vision_model.head": "attn_pool",
        "vision_model.encoder.layers": "blocks",
        "attention.out_proj": "proj",
        "self_attn.out_proj": "attn.proj",
        "layer_norm": "norm",
        "attn_pool.probe": "attn_pool.latent",
    }
    found: Weights = {}
    for name, value in weights.items():
        new = name
        for old, other in plain.items():
            new = new.replace(old, other)
        if name == "vision_model.embeddings.position_embedding.weight":
            found["pos_embed"] = value[None]
        elif "in_proj_" in name:
            end = name.rpartition("_")[2]
            parts = value.chunk(3)
            found |= {f"attn_pool.q.{end}": parts[0].clone(), f"attn_pool.kv.{end}": torch.cat(parts[1:])}
        elif ".self_attn.q_proj" in name and name.startswith("vision_model"):
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[new.replace("self_attn.q_proj", "attn.qkv")] = torch.cat(parts)
        elif name.startswith("vision_model") and "_proj." not in name.replace("out_proj", ""):
            found[new] = value
    return found


@pytest.fixture(scope="module")
def siglips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("siglips")
    base = tiny.save_tiny_siglip(root / "old", seed=0)
    return {
        "base": base,
        "tuned": tuned_from(root / "mine", base, "AutoModel"),
        "target": tiny.save_tiny_siglip(root / "new", seed=2),
    }


@pytest.mark.parametrize("layout", ["open_clip", "bare trunk"])
def test_siglip_is_read_as_the_same_task_vector(
    layout: str, siglips: dict[str, Path], tmp_path: Path
) -> None:
    renamed = {"open_clip": siglip_names, "bare trunk": siglip_trunk}[layout]
    base, tuned = (
        _saved(renamed(load_file(siglips[role] / "model.safetensors")), tmp_path / f"{role}.safetensors")
        for role in ("base", "tuned")
    )
    target = Checkpoint.open(siglips["target"])
    expected = place(TaskVector.between(siglips["base"], siglips["tuned"]), target).vector
    tower = {name for name in expected if name.startswith("vision_model")}
    for source in (TaskVector.between(siglips["base"], tuned), TaskVector.between(base, tuned)):
        assert not source.additions.specs
        found = place(source, target)
        assert not found.unplaced
        assert set(found.vector) == (set(expected) if layout == "open_clip" else tower)
        for name in found.vector:
            assert torch.equal(found.vector[name], expected[name]), name
    file = _saved(
        siglip_names(load_file(siglips["target"] / "model.safetensors")), tmp_path / "new.safetensors"
    )
    back = place(TaskVector.between(siglips["base"], siglips["tuned"]), Checkpoint.open(file)).vector
    assert set(back) == set(load_file(file))
    ours = siglip_names({name: expected[name] for name in expected})
    assert all(torch.equal(back[name], ours[name]) for name in back)


def test_another_vision_transformer_of_timm_with_attention_pooling_is_left_alone(
    siglips: dict[str, Path],
) -> None:
    weights = siglip_trunk(load_file(siglips["base"] / "model.safetensors"))
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in weights.items()}
    assert public_layout(specs) is not None
    assert public_layout({**specs, "blocks.0.attn.q_norm.weight": TensorSpec(torch.float32, (8,))}) is None


def test_a_vit_of_timm_is_read_as_the_same_task_vector(tmp_path: Path) -> None:
    old, new = (tiny.save_tiny_vit(tmp_path / name, seed=seed) for name, seed in (("old", 0), ("new", 2)))
    mine = tuned_from(tmp_path / "mine", old, "AutoModelForImageClassification")
    weights = load_file(mine / "model.safetensors")
    assert all(
        name.startswith(("vit.encoder.layer.", "vit.embeddings.", "vit.layernorm", "classifier"))
        for name in weights
    )
    file = _saved(timm_names(weights), tmp_path / "timm.safetensors")
    expected = place(TaskVector.between(old, mine), Checkpoint.open(new)).vector
    found = place(TaskVector.between(old, file), Checkpoint.open(new)).vector
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_names_of_the_libraries_are_repositories_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = SimpleNamespace(
        get_pretrained_cfg=lambda model, tag: (
            {"hf_hub": f"laion/{model}-{tag}/"} if tag == "laion2b" else {"url": "…"}
        )
    )
    known = SimpleNamespace(hf_hub_id="timm/vit_tiny.augreg")
    timm = SimpleNamespace(get_pretrained_cfg={"vit_tiny": known}.get)
    monkeypatch.setattr(
        registries, "import_module", {"open_clip.pretrained": open_clip, "timm.models": timm}.get
    )
    assert registries.hub_id("open_clip:ViT-B-16/laion2b") == "laion/ViT-B-16-laion2b"
    assert registries.hub_id("timm:vit_tiny") == "timm/vit_tiny.augreg"
    assert registries.hub_id("org/name@main") is None
    for name in ("open_clip:ViT-B-16/openai", "open_clip:ViT-B-16", "timm:nothing"):
        with pytest.raises(GradfixError, match="knows no weights of that name on the Hub"):
            registries.hub_id(name)


def test_the_libraries_own_registries_are_asked() -> None:
    pytest.importorskip("open_clip", reason="the extra vision is not installed")
    found = registries.hub_id("open_clip:ViT-B-16/laion2b_s34b_b88k")
    assert found == "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    assert registries.hub_id("timm:vit_base_patch16_224") == "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(GradfixError, match=r"pip install 'gradfix\[vision\]'"):
        Checkpoint.open("timm:vit_tiny")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_open_clips_own_model_computes_the_same(activation: str) -> None:
    open_clip = pytest.importorskip("open_clip", reason="the extra vision is not installed")
    from transformers import CLIPConfig, CLIPModel

    sizes = {"layers": 2, "width": 32}
    torch.manual_seed(0)
    theirs = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg=open_clip.CLIPVisionCfg(**sizes, head_width=16, patch_size=4, image_size=16),
        text_cfg=open_clip.CLIPTextCfg(**sizes, context_length=12, vocab_size=96, heads=2),
        quick_gelu=activation == "quick_gelu",
    ).eval()
    shared = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "hidden_act": activation,
    }  # fmt: skip
    text = {**shared, "vocab_size": 96, "max_position_embeddings": 12, "bos_token_id": 94, "eos_token_id": 95}
    ours = CLIPModel(
        CLIPConfig(
            text_config=text, vision_config={**shared, "image_size": 16, "patch_size": 4}, projection_dim=16
        )
    ).eval()
    ours.load_state_dict(_in_transformers(dict(theirs.state_dict())), strict=False)
    images, tokens = torch.randn(3, 3, 16, 16), torch.randint(1, 90, (3, 12))
    tokens[:, -1] = 95
    with torch.no_grad():
        features = ours.get_image_features(images).pooler_output, ours.get_text_features(tokens).pooler_output
        assert torch.allclose(features[0], theirs.encode_image(images), atol=1e-5)
        assert torch.allclose(features[1], theirs.encode_text(tokens), atol=1e-5)


def test_open_clips_own_siglip_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = pytest.importorskip("open_clip", reason="the extra vision is not installed")
    timm = pytest.importorskip("timm", reason="the extra vision is not installed")
    from transformers import SiglipConfig, SiglipModel

    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    made = timm.models.VisionTransformer

    def trunk(name: str, *, num_classes: int, global_pool: str, **_: object) -> torch.nn.Module:
        assert name == "vit_base_patch16_siglip_224"
        model: torch.nn.Module = made(**shape, class_token=False, global_pool="map", num_classes=num_classes)
        return model

    monkeypatch.setattr(timm, "create_model", trunk)
    torch.manual_seed(0)
    settings = open_clip.get_model_config("ViT-B-16-SigLIP")
    theirs = open_clip.model.CustomTextCLIP(
        embed_dim=32,
        vision_cfg={**settings["vision_cfg"], "image_size": 16},
        text_cfg={
            **{key: value for key, value in settings["text_cfg"].items() if "tokenizer" not in key},
            "context_length": 12, "vocab_size": 96, "width": 32, "heads": 2, "layers": 2,
        },
        init_logit_bias=-10,
    ).eval()  # fmt: skip
    shared = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "hidden_act": "gelu",
    }  # fmt: skip
    text = {**shared, "vocab_size": 96, "max_position_embeddings": 12, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config={**shared, "image_size": 16, "patch_size": 4})
    ours = SiglipModel(config).eval()
    ours.load_state_dict(_in_transformers(dict(theirs.state_dict())))
    images, tokens = torch.randn(3, 3, 16, 16), torch.randint(1, 90, (3, 12))
    with torch.no_grad():
        features = ours.get_image_features(images).pooler_output, ours.get_text_features(tokens).pooler_output
        assert torch.allclose(features[0], theirs.encode_image(images), atol=1e-5)
        assert torch.allclose(features[1], theirs.encode_text(tokens), atol=1e-5)
    assert torch.equal(ours.logit_bias, theirs.logit_bias.reshape(1))


def test_timms_own_model_computes_the_same() -> None:
    timm = pytest.importorskip("timm", reason="the extra vision is not installed")
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    theirs = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=3
    ).eval()
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=3, layer_norm_eps=1e-6)
    ours = ViTForImageClassification(config).eval()
    weights = _in_transformers(dict(theirs.state_dict()))
    layout = layout_of(
        ours, {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in weights.items()}
    )
    ours.load_state_dict({layout.renamed[name]: value for name, value in weights.items()})
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(ours(images).logits, theirs(images), atol=1e-5)


def _in_transformers(weights: Weights) -> Weights:
    layout = public_layout(
        {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in weights.items()}
    )
    assert layout is not None
    source = InMemory(Given(weights), layout)
    return {name: source.read(name) for name in source.specs}


def test_another_architecture_of_timm_is_left_alone(tmp_path: Path) -> None:
    weights = timm_names(load_file(tiny.save_tiny_vit(tmp_path / "m") / "model.safetensors"))
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in weights.items()}
    assert public_layout(specs) is not None
    assert public_layout({**specs, "blocks.0.ls1.weight": TensorSpec(torch.float32, (16,))}) is None
    del specs["cls_token"]
    assert public_layout(specs) is None
