import io
import json
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from autotimm.errors import UsageError
from autotimm.types import Batch, DataSpec, Sample, Stage, Step

IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
TARGETS = torch.tensor([0, 1])


def test_stage_values_are_prefixes():
    assert [stage.value for stage in Stage] == ["train", "val", "test", "predict"]
    assert Stage("val") is Stage.VAL
    assert Stage.VAL == "val"


def test_stage_prints_as_its_prefix_on_every_python():
    assert str(Stage.VAL) == "val"
    assert f"{Stage.VAL}/accuracy" == "val/accuracy"


def test_batch_of_a_batch_returns_it():
    batch = Batch(IMAGES, TARGETS, ("a", "b"))
    assert Batch.of(batch) is batch


@pytest.mark.parametrize("pair", [(IMAGES, TARGETS), [IMAGES, TARGETS], (IMAGES, {"boxes": TARGETS}), (IMAGES, None)])
def test_batch_of_a_pair(pair):
    batch = Batch.of(pair)
    assert isinstance(batch, Batch)
    assert batch.images is IMAGES
    assert batch.targets is pair[1]
    assert batch.ids == ()


def test_batch_of_images_only():
    batch = Batch.of(IMAGES)
    assert batch.images is IMAGES
    assert batch.targets is None
    assert batch.ids == ()


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"images": IMAGES}, "dict"),
        ((IMAGES, TARGETS, ("a", "b")), "tuple"),
        (([1], TARGETS), "tuple"),
        ([], "list"),
        ("images", "str"),
        (None, "NoneType"),
        (Step({}), "Step"),
    ],
)
def test_batch_of_other_types_is_rejected(wrong, name):
    with pytest.raises(UsageError, match=rf"must be \(images, targets\) or images. Got {name} instead.*collate_fn"):
        Batch.of(wrong)


def test_batches_and_samples_keep_their_type_when_pickled():
    # Lightning and torch rebuild named tuples field by field when they move or pin a batch.
    batch = Batch(IMAGES, TARGETS, ("a", "b"))
    restored = pickle.loads(pickle.dumps(batch))
    assert type(restored) is Batch
    assert torch.equal(restored.images, IMAGES)
    assert restored.ids == ("a", "b")
    assert type(Batch(*batch)) is Batch
    assert pickle.loads(pickle.dumps(Sample(IMAGES[0], 1, "cats/a.png"))).id == "cats/a.png"


def test_step_loss_is_the_differentiable_sum():
    a, b = torch.tensor(1.5, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    loss = Step({"class": a * 2, "box": b}).loss
    assert loss.shape == ()
    assert loss.item() == 5.0
    loss.backward()
    assert (a.grad.item(), b.grad.item()) == (2.0, 1.0)


def test_sum_of_one_loss_is_bit_identical():
    value = torch.tensor(0.1)
    assert torch.equal(Step({"class": value}).loss, value)


def test_step_without_targets_has_predictions_only():
    step = Step({}, predictions=TARGETS)
    assert step.targets is None
    assert step.predictions is TARGETS


@pytest.mark.parametrize("value", [Step({}), DataSpec(("x",))])
def test_steps_and_specs_are_frozen(value):
    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(value)[0].name, None)


SPEC = DataSpec(("Katze", "犬"), True, 64, 8, 0.95, "bicubic", "my_package.transforms.square", "boxes", (3, 17), 0.25)


def test_example_spec_has_no_default_values():
    # Otherwise the round trips below would not cover every field.
    default = DataSpec(())
    assert all(getattr(SPEC, field.name) != getattr(default, field.name) for field in fields(DataSpec))


def test_spec_round_trips_through_dict_and_json():
    assert DataSpec.from_dict(SPEC.as_dict()) == SPEC
    assert DataSpec.from_dict(json.loads(json.dumps(SPEC.as_dict()))) == SPEC
    assert hash(DataSpec.from_dict(SPEC.as_dict())) == hash(SPEC)


def test_spec_round_trips_through_a_weights_only_checkpoint():
    file = io.BytesIO()
    torch.save(SPEC.as_dict(), file)
    file.seek(0)
    assert DataSpec.from_dict(torch.load(file, weights_only=True)) == SPEC


def test_missing_entries_of_a_spec_get_defaults():
    assert DataSpec.from_dict({"class_names": ["a", "b"]}) == DataSpec(("a", "b"))
