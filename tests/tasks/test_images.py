import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from gradfix.errors import GradfixError
from gradfix.evaluation import evaluate
from gradfix.evaluation.evaluate import encode_rows, row_encoder
from gradfix.tasks import get_task, images
from gradfix.tasks.data import Row
from gradfix.tasks.zero_shot import read_templates
from tests import tiny

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def towers(request, tmp_path_factory):
    save = {"clip": tiny.save_tiny_clip, "siglip": tiny.save_tiny_siglip}[request.param]
    directory = save(tmp_path_factory.mktemp(request.param))
    task = get_task("zero-shot-image-classification", labels=COLOURS)
    model = task.load_model(directory)
    with torch.no_grad():  # a seeded tiny model has them at their initial values, which hide mistakes
        model.logit_scale.fill_(1.3)
        if request.param == "siglip":
            model.logit_bias.fill_(-2.0)
    task.prepare(model)
    return task, model


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    task = get_task("image-classification")
    return task, task.load_model(tiny.save_tiny_vit(tmp_path_factory.mktemp("vit")))


def test_one_template_gives_the_logits_of_the_model_itself(towers):
    task, model = towers
    batch = task.encode(tiny.images(5))
    siglip = model.config.model_type == "siglip"
    text = task.tokenizer(
        [f"a photo of a {name}." for name in COLOURS],
        padding="max_length" if siglip else True,
        return_tensors="pt",
    )
    inputs = {"input_ids": text["input_ids"]} if siglip else dict(text)
    expected = model(**inputs, pixel_values=batch["pixel_values"]).logits_per_image
    assert expected.std(dim=1).min() > 0.01  # the classes differ
    assert torch.allclose(task.logits(model, batch), expected, atol=1e-5)
    assert torch.allclose(
        task.loss(model, batch), cross_entropy(expected, batch["labels"], reduction="none"), atol=1e-5
    )


def test_several_templates_are_a_normalised_mean_of_normalised_features(towers):
    _, model = towers
    templates = ["good {} day", "the {}", "a dull {} film night"]
    task = get_task("zero-shot-image-classification", labels=["red", "dark_green"], templates=templates)
    task.tokenizer = towers[0].tokenizer
    task.prepare(model)
    for index, name in enumerate(["red", "dark green"]):
        features = task._text_features(model, [template.replace("{}", name) for template in templates])
        mean = (features / features.norm(dim=1, keepdim=True)).mean(dim=0)
        assert torch.allclose(task._weights[index], mean / mean.norm(), atol=1e-6)


def test_only_the_vision_side_votes(towers):
    task, model = towers
    voters = set(task.voters(model))
    model.zero_grad()
    task.loss(model, task.encode(tiny.images(3))).sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == voters
    assert not any("text" in name or "logit" in name for name in voters)
    assert all(name in voters for name, _ in model.named_parameters() if "vis" in name)


def test_class_weights_stay_the_bases_when_the_model_changes(towers):
    task, model = towers
    batch = task.encode(tiny.images(3))
    before = task.logits(model, batch)
    held = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in set(task.voters(model)):
                parameter.add_(1.0)
    try:
        assert torch.equal(task.logits(model, batch), before)
    finally:
        model.load_state_dict(held)


def test_zero_shot_needs_labels_and_preparation(tmp_path, towers):
    task = get_task("zero-shot-image-classification")
    directory = tiny.save_tiny_clip(tmp_path / "clip")
    model = task.load_model(directory)
    with pytest.raises(GradfixError, match=r"zero-shot-image-classification: no labels yet; give labels"):
        task.prepare(model)
    task.use_labels(COLOURS)
    with pytest.raises(GradfixError, match=r"call prepare\(model\)"):
        task.loss(model, task.encode(tiny.images(1)))
    with pytest.raises(GradfixError, match="Linear: has no vision_model"):
        task.prepare(torch.nn.Linear(2, 2))


def test_templates_come_from_a_list_a_text_or_a_file(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("# of EuroSAT\na satellite photo of {}.\n\n{} from above\n")
    assert read_templates(path) == ["a satellite photo of {}.", "{} from above"]
    assert read_templates([str(path)]) == read_templates(path)
    assert read_templates("one {}") == read_templates(["one {}"]) == ["one {}"]
    with pytest.raises(GradfixError, match=r"expected one \{\} for the class in each template, found 'none'"):
        read_templates(["a {}", "none"])
    with pytest.raises(GradfixError, match=r"missing.txt: cannot be read"):
        read_templates(str(tmp_path / "missing.txt"))
    with pytest.raises(GradfixError, match="templates: no prompt template"):
        read_templates([])


def test_an_image_model_with_a_head(vit):
    task, model = vit
    batch = task.encode(tiny.images(6))
    assert batch["pixel_values"].shape == (6, 3, 16, 16)
    expected = model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
    losses = task.loss(model, batch)
    assert torch.isclose(losses.mean(), expected)
    assert losses.std() > 0.01
    assert task.features(model, batch).shape == (6, 16)
    assert task.head(model) == ["classifier.weight", "classifier.bias"]
    assert list(task.fit_head(model, tiny.images(9))) == ["classifier.weight", "classifier.bias"]
    assert set(task.measure(model, batch).predictions) <= set(COLOURS)


def test_an_image_is_the_same_however_it_is_given(tmp_path, vit):
    task, _ = vit
    image = tiny.images(1)[0]["image"]
    path = tmp_path / "image.png"
    image.save(path)
    forms = [
        image,
        path,
        str(path),
        path.read_bytes(),
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
        np.asarray(image),
    ]
    batch = task.encode([{"image": form, "label": "red"} for form in forms])
    assert all(torch.equal(batch["pixel_values"][0], other) for other in batch["pixel_values"])


def test_an_image_lies_as_its_camera_says(vit):
    task, _ = vit
    image = tiny.images(1)[0]["image"]
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    data = io.BytesIO()
    image.save(data, "png", exif=exif)
    turned = task.encode([{"image": data.getvalue(), "label": "red"}])["pixel_values"]
    upright = task.encode([{"image": image.rotate(180), "label": "red"}])["pixel_values"]
    assert torch.equal(turned, upright)


def test_an_unreadable_image_is_named_with_its_row_and_path(tmp_path, vit):
    task, _ = vit
    whole = io.BytesIO()
    tiny.images(1)[0]["image"].save(whole, "png")
    cut, text = tmp_path / "cut.png", tmp_path / "text.png"
    cut.write_bytes(whole.getvalue()[:300])
    text.write_text("<html>")
    for value, reason in [
        (cut, r"column 'image': the image .*cut.png cannot be read \(.*truncated"),
        (text, r"column 'image': the image .*text.png cannot be read \(not an image\)"),
        (tmp_path / "none.png", r"column 'image': the image .*none.png: cannot be read \(No such file"),
        (3, "column 'image': expected an image, found int"),
    ]:
        row = Row({"image": value, "label": "red"}, "row 17 of shots")
        for use in (task.check, task.encode):
            with pytest.raises(GradfixError, match=f"row 17 of shots: {reason}"):
                use([row])


def test_a_target_without_image_processor_is_refused(tmp_path):
    directory = tiny.save_tiny_vit(tmp_path / "vit")
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(GradfixError, match=r"cannot load an image processor \(preprocessor_config.json\)"):
        get_task("image-classification").bind(directory)


def test_an_image_is_encoded_once_for_batches_of_every_make(vit, monkeypatch):
    task, _ = vit
    rows = tiny.images(7)
    expected = [
        encode_rows(task, [rows[place] for place in places], batch_size=3)
        for places in ([6, 0, 2, 4, 1], [3])
    ]
    read: list[str] = []
    monkeypatch.setattr(images, "read_image", lambda value, where: read.append(where) or value)
    encode = row_encoder(task, rows, batch_size=3)
    for found, fresh in zip((encode([6, 0, 2, 4, 1]), encode([3])), expected, strict=True):
        assert found.positions == fresh.positions
        for batch, other in zip(found.batches, fresh.batches, strict=True):
            assert batch.keys() == other.keys()
            assert all(torch.equal(batch[key], other[key]) for key in other)
    assert len(read) == 8  # the first alone, which tells how large all will be, and then all

    # More than may be kept are encoded for each batch.
    monkeypatch.setattr(evaluate, "MOST_KEPT", 1)
    few = row_encoder(task, rows, batch_size=3)([6, 0, 2, 4, 1])
    assert few.positions == expected[0].positions
    for batch, other in zip(few.batches, expected[0].batches, strict=True):
        assert all(torch.equal(batch[key], other[key]) for key in other)
