"""Networks whose outputs are more than one tensor: cut, joined and the same bits as alone."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from autotimm import Task
from autotimm.data.toy import toy_images
from autotimm.errors import UsageError
from autotimm.tasks.network_outputs import first_of, join
from autotimm.types import Prediction, Step
from training import toy_data, trainer


class Found(NamedTuple):
    scores: torch.Tensor
    boxes: list


class Detector(nn.Module):
    """Gives scores and levels by batch and, as torchvision's detectors, one entry per image with its own length."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images):
        means = images.float().mean((2, 3)) / 255
        boxes = [{"boxes": mean.expand(int(10 * mean.sum()) % 4, 3), "label": str(float(mean[0]))} for mean in means]
        return {"found": Found(self.head(means), boxes), "levels": [means, means[:, :1]], "same": (images,)}


class Detects(Task):
    def __init__(self, **options):
        super().__init__(lambda seed: Detector(), lr=0.1, **options)

    def step(self, batch, stage):
        scores = self.infer(batch.images)["found"].scores
        return Step({"loss": nn.functional.cross_entropy(scores, batch.targets % 2)})

    def decode(self, output, batch):
        boxes = zip(batch.ids, output["found"].boxes, strict=True)
        return [Prediction(id, (one["label"],), {"count": float(len(one["boxes"]))}) for id, one in boxes]

    def default_metrics(self):
        return []


def test_an_image_has_the_same_outputs_in_every_batch():
    images, _ = toy_images(6)
    task = Detects(eval_batch_size=4).eval()
    with torch.no_grad():
        together = task.infer(images)
        alone = [task.infer(one[None]) for one in images]
    assert type(together["found"]) is Found
    assert [len(together["found"].scores), len(together["found"].boxes)] == [6, 6]
    assert [one.shape for one in together["levels"]] == [(6, 3), (6, 1)]
    assert torch.equal(together["same"][0], images)
    for index, one in enumerate(alone):
        assert torch.equal(one["found"].scores[0], together["found"].scores[index])
        assert torch.equal(one["found"].boxes[0]["boxes"], together["found"].boxes[index]["boxes"])
        assert one["found"].boxes[0]["label"] == together["found"].boxes[index]["label"]
    assert len({len(one["boxes"]) for one in together["found"].boxes}) > 1  # the test has images that differ


def test_such_a_task_trains_and_predicts(toy_folder):
    task, data = Detects(), toy_data(toy_folder)
    trainer().fit(task, datamodule=data)
    found = [one for batch in trainer().predict(task, data.val_dataloader()) for one in batch]
    assert tuple(one.id for one in found) == data.tables["val"].ids


@pytest.mark.parametrize("output", [torch.tensor(1.0), torch.zeros(3, 4), [1, 2, 3], (torch.zeros(4), None), "text"])
def test_what_has_no_entry_for_each_image_is_refused(output):
    with pytest.raises(UsageError, match="one entry for each of 4 images"):
        first_of(output, 2, of=4)


def test_lists_of_tensors_have_the_images_first_and_other_lists_are_by_image():
    tensors = [torch.zeros(2, 3), torch.zeros(2, 5)]
    assert [one.shape[0] for one in join([first_of(tensors, 1, of=2)] * 3)] == [3, 3]
    assert join([first_of(["a", "b"], 1, of=2)] * 3) == ["a", "a", "a"]
