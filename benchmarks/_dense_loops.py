"""Careful training loops with torch, torchvision and segmentation-models-pytorch, the baseline of `dense.py`.

Reading, augmentation, training and evaluation do not use autotimm. All four data sets share one training loop:
AdamW with weight decay 0.05, one epoch of linear warm-up, then a cosine schedule to 0 per step, gradients clipped to
norm 1, validation after each epoch. The weights of the best epoch are tested.
"""

from __future__ import annotations

import copy
import csv
import math
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import JaccardIndex, Metric
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.detection import MeanAveragePrecision
from torchvision import tv_tensors
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms import v2

__all__ = ["LOOPS", "Budget", "cards"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Budget(NamedTuple):
    """Training settings that both sides share."""

    epochs: int
    batch_size: int
    image_size: int
    lr: float
    width: int
    workers: int


class Job(NamedTuple):
    """What depends on the data set: the three splits, the network, and how to train and evaluate it."""

    data: dict[str, Dataset[Any]]
    model: nn.Module
    loss: Callable[[nn.Module, Any, Any], Tensor]
    metric: Callable[[], Metric]
    measure: Callable[[nn.Module, Any, Any, Metric], None]
    score: Callable[[Metric], float]


class Items(Dataset[Any]):
    """Images and targets, read and transformed on access."""

    def __init__(self, items: list[Any], read: Callable[[Any], Any], transform: Callable[..., Any]) -> None:
        self.items, self.read, self.transform = items, read, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.transform(*self.read(self.items[index]))


def picture(path: Path) -> tv_tensors.Image:
    """An RGB image."""
    return tv_tensors.Image(v2.functional.pil_to_tensor(Image.open(path).convert("RGB")))


def lists(examples: list[Any]) -> Any:
    """Images of different sizes and their targets stay lists."""
    return tuple(zip(*examples, strict=True))


def by_hand(job: Job, budget: Budget, uneven: bool) -> float:
    """Train, keep the best epoch, test."""
    batches = {
        split: DataLoader(
            data, budget.batch_size, shuffle=split == "train",
            num_workers=budget.workers, persistent_workers=budget.workers > 0, collate_fn=lists if uneven else None,
        )
        for split, data in job.data.items()
    }  # fmt: skip
    optimizer = torch.optim.AdamW(job.model.parameters(), lr=budget.lr, weight_decay=0.05)
    warm_up, steps = len(batches["train"]), budget.epochs * len(batches["train"])

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    best, weights = -1.0, job.model.state_dict()
    for epoch in range(budget.epochs):
        job.model.train()
        for images, targets in batches["train"]:
            loss = job.loss(job.model, images, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(job.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        reached = _score(job, batches["val"])
        print(f"epoch {epoch + 1}/{budget.epochs}  train/loss {loss:.4g}  val {reached:.4g}", file=sys.stderr)
        if reached > best:
            best, weights = reached, copy.deepcopy(job.model.state_dict())
    job.model.load_state_dict(weights)
    return _score(job, batches["test"])


@torch.inference_mode()
def _score(job: Job, batches: DataLoader[Any]) -> float:
    job.model.eval()
    metric = job.metric()
    for images, targets in batches:
        job.measure(job.model, images, targets, metric)
    return job.score(metric)


# Objects


def object_transforms(size: tuple[int, int]) -> dict[bool, Any]:
    """Transforms of images, boxes and masks in training and evaluation; ``size`` keeps the aspect ratio."""
    plain = [v2.Resize(size), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    return {True: v2.Compose([v2.RandomHorizontalFlip(), *plain]), False: v2.Compose(plain)}


def object_loss(model: nn.Module, images: Any, targets: Any) -> Tensor:
    """The sum of the losses that torchvision's detectors return."""
    return sum(model(list(images), list(targets)).values())


def boxes_job(root: Path, budget: Budget) -> Job:
    """BCCD: cells in blood, PASCAL VOC; 205, 87 and 72 images."""
    folder = root / "det_bccd_voc" / "BCCD"
    names = ("Platelets", "RBC", "WBC")
    sides = ("xmin", "ymin", "xmax", "ymax")

    def read(name: str) -> Any:
        image = picture(folder / "JPEGImages" / f"{name}.jpg")
        objects = ElementTree.parse(folder / "Annotations" / f"{name}.xml").findall("object")
        boxes = torch.tensor([[float(one.findtext(f"bndbox/{side}")) for side in sides] for one in objects])
        boxes[:, :2] -= 1  # VOC counts pixels from 1, and its last pixel belongs to the box
        labels = torch.tensor([names.index(one.findtext("name")) + 1 for one in objects])
        whole = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = tv_tensors.BoundingBoxes(boxes[whole], format="XYXY", canvas_size=image.shape[-2:])
        return image, {"boxes": boxes, "labels": labels[whole]}

    size = (budget.image_size * 3 // 4, budget.image_size)
    transforms = object_transforms(size)
    splits = {split: (folder / "ImageSets/Main" / f"{split}.txt").read_text().split() for split in TRAINED}
    data = {split: Items(items, read, transforms[split == "train"]) for split, items in splits.items()}
    backbone = BackboneWithFPN(
        resnet18(weights=None), {f"layer{one}": str(one) for one in (2, 3, 4)}, [128, 256, 512], budget.width,
        extra_blocks=LastLevelP6P7(budget.width, budget.width),
    )  # fmt: skip
    model = FCOS(
        backbone, len(names) + 1, min_size=size[0], max_size=size[1], score_thresh=0.05, detections_per_img=100
    )
    return Job(data, model, object_loss, MeanAveragePrecision, _found, lambda metric: float(metric.compute()["map_50"]))


def _found(model: nn.Module, images: Any, targets: Any, metric: Metric) -> None:
    metric.update(model(list(images)), list(targets))


def masks_job(root: Path, budget: Budget) -> Job:
    """Nuts: COCO polygons; 14 training images, and 4 both to choose the epoch and to test."""
    folder = root / "inst_nuts_coco"
    coco = COCO(folder / "data" / "trainval.json")
    numbers = {one["file_name"].rpartition("/")[2]: one["id"] for one in coco.imgs.values()}
    classes = {number: place + 1 for place, number in enumerate(sorted(coco.cats))}

    def read(name: str) -> Any:
        image = picture(folder / "data" / "images" / name)
        objects = coco.imgToAnns[numbers[name]]
        boxes = torch.tensor([one["bbox"] for one in objects])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=image.shape[-2:]),
            "masks": tv_tensors.Mask(torch.stack([torch.from_numpy(coco.annToMask(one)) for one in objects])),
            "labels": torch.tensor([classes[one["category_id"]] for one in objects]),
        }
        target["boxes"] = v2.functional.convert_bounding_box_format(target["boxes"], new_format="XYXY")
        return image, target

    size = (budget.image_size * 3 // 4, budget.image_size)
    transforms = object_transforms(size)
    found = {split: (folder / f"{split}.txt").read_text().split() for split in ("train", "val")}
    splits = {split: [name.rpartition("/")[2] for name in names] for split, names in found.items()}
    splits["test"] = splits["val"]
    data = {split: Items(items, read, transforms[split == "train"]) for split, items in splits.items()}
    return Job(data, _mask_rcnn(len(classes) + 1, size, budget.width), object_loss,
               lambda: MeanAveragePrecision(iou_type="segm"), _outlined,
               lambda metric: float(metric.compute()["map_50"]))  # fmt: skip


def _mask_rcnn(classes: int, size: tuple[int, int], width: int) -> MaskRCNN:
    """Mask R-CNN with heads of the same width as on autotimm's side."""
    layers = {f"layer{one}": str(one - 1) for one in (1, 2, 3, 4)}
    backbone = BackboneWithFPN(resnet18(weights=None), layers, [64, 128, 256, 512], width)
    kept = {"train": 2000 * width // 256, "test": 1000 * width // 256}
    limits = {f"rpn_{when}_nms_top_n_{stage}": kept[stage] for when in ("pre", "post") for stage in kept}
    return MaskRCNN(
        backbone, min_size=size[0], max_size=size[1],
        rpn_batch_size_per_image=width, box_batch_size_per_image=2 * width, **limits,
        box_head=TwoMLPHead(width * 49, 4 * width), box_predictor=FastRCNNPredictor(4 * width, classes),
        mask_head=MaskRCNNHeads(width, (width,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(width, width, classes),
    )  # fmt: skip


def _outlined(model: nn.Module, images: Any, targets: Any, metric: Metric) -> None:
    found = [{**one, "masks": one["masks"][:, 0] > 0.5} for one in model(list(images))]
    metric.update(found, [{**one, "masks": one["masks"].bool()} for one in targets])


# Pixels


def pixels_job(root: Path, budget: Budget) -> Job:
    """A walk through a building: label images; 90, 60 and 60 images, 11 classes."""
    folders = {"train": "train", "val": "valid", "test": "test"}
    splits = {split: sorted((root / "seg_dhcn" / name).glob("*.jpg")) for split, name in folders.items()}

    def read(path: Path) -> Any:
        mask = Image.open(path.with_name(f"{path.stem}_mask.png"))
        return picture(path), tv_tensors.Mask(v2.functional.pil_to_tensor(mask)[0])

    size = budget.image_size
    last = [
        v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
        v2.Normalize(MEAN, STD), v2.ToPureTensor(),
    ]  # fmt: skip
    # torchvision's reference recipe: half to twice the size, a crop, a mirror.
    varied = [v2.RandomResize(size // 2, size * 2), v2.RandomHorizontalFlip(),
              v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Mask: 255, "others": 0})]  # fmt: skip
    transforms = {True: v2.Compose([*varied, *last]), False: v2.Compose([v2.Resize((size, size)), *last])}
    data = {split: Items(items, read, transforms[split == "train"]) for split, items in splits.items()}
    model = smp.FPN(
        "resnet18", encoder_weights=None, classes=11, decoder_pyramid_channels=budget.width,
        decoder_segmentation_channels=budget.width // 2,
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    return Job(
        data, model, lambda model, images, masks: criterion(model(images), masks),
        lambda: JaccardIndex("multiclass", num_classes=11, ignore_index=255),
        lambda model, images, masks, metric: metric.update(model(images), masks),
        lambda metric: float(metric.compute()),
    )  # fmt: skip


# Several labels


def cards(root: Path) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Playing cards: the column names, and the rows; every fifth row of the training table validates."""
    folder = root / "multilabel_cards"
    found: dict[str, list[list[str]]] = {}
    for split in ("train", "test"):
        with (folder / f"{split}_labels_multihot.csv").open() as file:
            header, *rows = list(csv.reader(file))
        found[split] = [[str((folder / "images" / split / row[0]).resolve()), *row[1:]] for row in rows]
    table = found["train"]
    found["val"] = table[::5]
    found["train"] = [row for place, row in enumerate(table) if place % 5]
    return header, found


def labels_job(root: Path, budget: Budget) -> Job:
    """Playing cards: 59, 15 and 26 images, 6 labels."""
    header, splits = cards(root)

    def read(row: list[str]) -> Any:
        return picture(Path(row[0])), torch.tensor([float(one) for one in row[1:]])

    size = budget.image_size
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]
    varied = [v2.RandomResizedCrop(size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip()]
    plain = [v2.Resize(round(size / 0.875)), v2.CenterCrop(size)]
    transforms = {True: v2.Compose([*varied, *last]), False: v2.Compose([*plain, *last])}
    data = {split: Items(rows, read, transforms[split == "train"]) for split, rows in splits.items()}
    model, criterion = timm.create_model("resnet18", num_classes=len(header) - 1), nn.BCEWithLogitsLoss()
    return Job(
        data, model, lambda model, images, labels: criterion(model(images), labels),
        lambda: MultilabelAveragePrecision(len(header) - 1),
        lambda model, images, labels, metric: metric.update(model(images), labels.int()),
        lambda metric: float(metric.compute()),
    )  # fmt: skip


TRAINED = ("train", "val", "test")
JOBS = {"boxes": boxes_job, "pixels": pixels_job, "masks": masks_job, "labels": labels_job}


def _loop(name: str) -> Callable[[Path, Budget, int], float]:
    def run(root: Path, budget: Budget, seed: int) -> float:
        torch.manual_seed(seed)
        return by_hand(JOBS[name](root, budget), budget, uneven=name in ("boxes", "masks"))

    return run


LOOPS = {name: _loop(name) for name in JOBS}
