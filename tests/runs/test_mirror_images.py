"""``predict(tta="flip")``: the mean of an image and its mirror image, with the same bits alone or among others."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from autotimm import Run
from autotimm.cli.main import main
from autotimm.data.toy import write_toy_folder
from autotimm.errors import UsageError
from training import classifier, multi_label_data, toy_data, trainer


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror") / "photos"
    return write_toy_folder(folder, splits={"train": 12, "val": 5}, num_classes=3, image_size=32, seed=7)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    # Without a crop, whose middle may be half a pixel off, the network sees each image as it is.
    folder = tmp_path_factory.mktemp("run") / "photos"
    trainer(1, run_dir=folder).fit(classifier(), datamodule=toy_data(photos, val_split=0, crop_pct=1.0))
    return Run(folder)


@pytest.fixture(scope="module")
def images(photos, tmp_path_factory):
    """Pictures without any symmetry, as they are and mirrored."""
    folder, drawn = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in "abcdefghij":
        image = Image.fromarray(drawn.integers(0, 256, (32, 32, 3), np.uint8))
        image.save(folder / f"{name}.png")
        ImageOps.mirror(image).save(folder / f"{name}-mirrored.png")
    return folder


def pairs(run, images, **options):
    found = {one.id: one for one in run.predict(images, **options)}
    return [(found[f"{name}.png"], found[f"{name}-mirrored.png"]) for name in "abcdefghij"]


def check_means(run, images):
    averaged = pairs(run, images, tta="flip")
    for (plain, mirrored), (one, other) in zip(pairs(run, images), averaged, strict=True):
        assert plain.scores != mirrored.scores, "images that look the same prove nothing"
        for name, score in one.scores.items():
            assert score == pytest.approx((plain.scores[name] + mirrored.scores[name]) / 2, abs=1e-6)
        assert (one.scores, one.labels) == (other.scores, other.labels)
    (alone,) = run.predict([images / "c.png"], tta="flip")
    assert alone.scores == averaged[2][0].scores


def test_one_class(run, images):
    check_means(run, images)
    for one, _ in pairs(run, images, tta="flip"):
        assert one.labels == (max(one.scores, key=one.scores.get),)


def test_several_labels(photos, images, tmp_path):
    trainer(1, run_dir=tmp_path / "run").fit(
        classifier(num_classes=2, multi_label=True), datamodule=multi_label_data(photos, tmp_path, crop_pct=1.0)
    )
    run = Run(tmp_path / "run")
    check_means(run, images)
    for one, _ in pairs(run, images, tta="flip", threshold=0.4, raw=True):
        assert one.labels == tuple(name for name, score in one.scores.items() if score >= 0.4)


def test_features_are_those_of_the_image_itself(run, images, tmp_path):
    for tta in (None, "flip", "multiscale"):
        run.predict(images, tta=tta, embeddings=tmp_path / f"{tta}.csv")
    assert len({(tmp_path / f"{tta}.csv").read_text() for tta in (None, "flip", "multiscale")}) == 1


def test_the_answer_names_it(run, images, capfd):
    assert main(["predict", str(run.path), str(images / "a.png"), "--tta", "flip", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["tta"] == "flip"
    assert answer["predictions"][0]["scores"] == run.predict([images / "a.png"], tta="flip")[0].scores


def test_what_it_cannot_do_is_refused(run, images):
    with pytest.raises(UsageError, match="`tta` of predict must be left out with a coverage"):
        run.predict(images, tta="flip", coverage=0.9)
    with pytest.raises(UsageError, match="`tta` of predict must be one of flip, multiscale"):
        run.predict(images, tta="rotate")
