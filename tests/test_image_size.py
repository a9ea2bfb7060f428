"""Sizes of images: how they are given and written, what fits into them, and which ones are refused with the reason."""

import pytest
import torch
from torchvision import tv_tensors

from autotimm import DetectionDataModule, ImageClassifier, ObjectDetector
from autotimm.config import FitConfig
from autotimm.data.transforms.image_transforms import AUGMENTATIONS, Cover, ScaleJitter, eval_transform, train_transform
from autotimm.data.transforms.spatial_transforms import (
    SPATIAL_AUGMENTATIONS,
    SpatialTransform,
    place,
    spatial_augmentation,
)
from autotimm.errors import ModelError, UsageError, WeightsError
from autotimm.models.backbone.pooled import build_backbone
from autotimm.types import DataSpec, Placement, Sample

IMAGE = torch.arange(3 * 50 * 120).reshape(3, 50, 120).remainder(251).to(torch.uint8)


class TestOption:
    @pytest.mark.parametrize("given", ["48x64", "48X64", (48, 64), [48, 64], ["48", "64"]])
    def test_all_ways_to_give_a_rectangle_are_one(self, given):
        config = FitConfig(path="photos", image_size=given)
        assert config.image_size == (48, 64)
        assert "image_size: 48x64 " in config.to_yaml()
        assert FitConfig.from_options("photos", {"image_size": config.as_dict()["image_size"]}).image_size == (48, 64)

    def test_equal_sides_are_a_square(self):
        assert FitConfig(path="photos", image_size="64x64") == FitConfig(path="photos", image_size=64)

    @pytest.mark.parametrize("given", ["48x", "x64", "48x64x3", "0x64", (48,), (48, -1), 1.5, True, "wide"])
    def test_anything_else_is_refused(self, given):
        with pytest.raises(UsageError, match=r"`image_size` of .* must be .*height and width, such as 480x640"):
            FitConfig(path="photos", image_size=given)

    def test_python_gives_numbers(self):
        assert DetectionDataModule("photos", image_size=(64, 96)).image_size == (64, 96)
        with pytest.raises(UsageError, match=r"`image_size` of DetectionDataModule must be .* a pair of them"):
            DetectionDataModule("photos", image_size="64x96")

    def test_a_checkpoint_holds_plain_data(self):
        spec = DataSpec(("a", "b"), image_size=(48, 64))
        assert spec.as_dict()["image_size"] == [48, 64]
        assert DataSpec.from_dict(spec.as_dict()) == spec


class TestTransforms:
    @pytest.mark.parametrize("name", AUGMENTATIONS)
    def test_images_of_classes_have_the_size(self, name):
        for size in ((48, 64), (64, 32)):
            assert train_transform(name, size)(tv_tensors.Image(IMAGE)).shape == (3, *size)
            assert eval_transform(size)(IMAGE).shape == (3, *size)

    def test_a_rectangle_of_the_same_shape_is_resized_and_not_cut(self):
        whole = Cover(25, 60, 1.0, 1.0, eval_transform(8).transforms[0].interpolation)(IMAGE)
        assert torch.equal(eval_transform((25, 60), crop_pct=1.0)(IMAGE), whole)

    def test_cover_of_a_square_is_the_resize_of_torchvision(self):
        resize, _ = eval_transform(32).transforms
        scale = resize.size[0] / 32
        assert torch.equal(Cover(32, 32, scale, scale, resize.interpolation)(IMAGE), resize(IMAGE))

    def test_a_scale_is_relative_to_the_largest_that_fits(self):
        # 50 x 120 fits into 100 x 60 at one half; torchvision's own transform takes the sides for each other.
        assert ScaleJitter((100, 60), 1.0, 1.0)(tv_tensors.Image(IMAGE)).shape == (3, 25, 60)

    def test_the_letterbox_is_only_where_needed(self):
        assert place(50, 120, (50, 120)) == Placement(50, 120, 0, 0, 50, 120)
        assert place(100, 120, (50, 120)) == Placement(100, 120, 0, 30, 50, 60)

    @pytest.mark.parametrize("name", SPATIAL_AUGMENTATIONS)
    def test_images_with_boxes_have_the_size(self, name):
        boxes = tv_tensors.BoundingBoxes([[10.0, 5, 110, 45]], format="XYXY", canvas_size=(50, 120))
        masks = tv_tensors.Mask(torch.ones(1, 50, 120, dtype=torch.uint8))
        target = {"boxes": boxes, "labels": torch.tensor([0]), "masks": masks}
        transform = SpatialTransform(spatial_augmentation(name, (48, 64), "the test"), (48, 64), "t", "the test")
        result = transform(Sample(tv_tensors.Image(IMAGE), target, "a"))
        assert result.image.shape == (3, 48, 64)
        assert result.target["masks"].shape[1:] == (48, 64)
        assert (result.target["boxes"] <= torch.tensor([64, 48, 64, 48])).all()


class TestNetworks:
    def test_a_size_that_an_architecture_cannot_take_is_refused_with_the_next_ones(self):
        with pytest.raises(ModelError, match=r"`image_size` of 60x100 \(.*multiple of 32\). Give 32x96 or 64x128."):
            ObjectDetector("test_resnet", 2, width=64, pretrained=False, image_size=(60, 100))
        with pytest.raises(ModelError, match=r"60x100 \(Input height \(60\) should be divisible.*Give 48x96 or 64x112"):
            ImageClassifier("test_vit", 2, pretrained=False, image_size=(60, 100))

    def test_a_vit_runs_and_resamples_its_weights(self, tmp_path):
        square = build_backbone("test_vit", image_size=160)
        torch.save(square.state_dict(), tmp_path / "square.pt")
        model = ImageClassifier("test_vit", 2, image_size=(64, 96), pretrained=str(tmp_path / "square.pt"))
        assert model.network.backbone.patch_embed.grid_size == (4, 6)
        embeddings = model.network.backbone.pos_embed
        assert embeddings.shape[1] == 4 * 6 + model.network.backbone.num_prefix_tokens
        assert model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8)).shape == (1, 2)

    def test_as_many_patches_in_another_grid_are_not_taken_for_a_square(self, tmp_path):
        square = build_backbone("test_vit", image_size=64)  # 4 x 4 patches
        torch.save(square.state_dict(), tmp_path / "square.pt")
        with pytest.raises(WeightsError, match="2 x 8 patches, as many as a square of 4 x 4"):
            ImageClassifier("test_vit", 2, image_size=(32, 128), pretrained=str(tmp_path / "square.pt"))
