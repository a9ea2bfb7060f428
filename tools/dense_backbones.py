"""Write the table of docs/reference/dense-backbones.md: which architectures work with which backbones.

    python tools/dense_backbones.py            tries all of them, and writes the table (some minutes)
    python tools/dense_backbones.py --check    says whether the page is up to date, and exits with 1 if not

Each pair is built with random weights, trained for one step and run on images of 64 pixels.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from autotimm.errors import ModelError
from autotimm.losses.pixel_losses import build_dense_loss
from autotimm.models import DETECTORS, SEGMENTERS, build_detector, build_segmenter

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "dense-backbones.md"
PART = re.compile(r"(?<=<!-- table: dense backbones -->\n).*?(?=<!-- end -->)", re.DOTALL)
ARCHS = (*DETECTORS, *SEGMENTERS)
FAMILIES = {
    "resnet18": "ResNet",
    "regnety_002": "RegNet",
    "hrnet_w18_small": "HRNet",
    "efficientnet_b0": "EfficientNet",
    "mobilenetv3_small_100": "MobileNet",
    "inception_v4": "Inception",
    "convnext_atto": "ConvNeXt",
    "swin_tiny_patch4_window7_224": "Swin",
    "maxvit_tiny_tf_224": "hybrid, MaxViT",
    "vit_tiny_r_s16_p8_224": "hybrid, ResNet and ViT",
    "vit_tiny_patch16_224": "ViT",
    "vit_small_patch14_dinov2": "ViT, patch 14",
}
SIZE = 64
SIZES = {"inception_v4": 256}  # refused, for a reason that does not show in small images


def reason(arch: str, backbone: str) -> str:
    """Why the two do not go together; an empty string if they do."""
    options = {"image_size": SIZES.get(backbone, SIZE), "width": 64}
    try:
        if arch in DETECTORS:
            _detect(build_detector(arch, backbone, 2, **options))
        else:
            _segment(build_segmenter(arch, backbone, 2, **options))
    except ModelError as error:
        return str(error)
    return ""


def _pictures() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _detect(network: torch.nn.Module) -> None:
    box = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]), "labels": torch.tensor([1])}
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    masks[:, 8:48, 8:40] = 1
    torch.manual_seed(0)
    losses = network.train()(_pictures(), [{**box, "masks": masks}] * 2)
    _learn(network, torch.stack(list(losses.values())).sum())
    with torch.no_grad():
        assert len(network.eval()(_pictures())) == 2


def _segment(network: torch.nn.Module) -> None:
    wanted = torch.zeros(2, SIZE, SIZE, dtype=torch.int64)
    wanted[:, 8:48, 8:40] = 1
    torch.manual_seed(0)
    _learn(network, build_dense_loss("ce+dice", num_classes=2)(network.train()(_pictures()), wanted))
    with torch.no_grad():
        assert network.eval()(_pictures()).shape == (2, 2, SIZE, SIZE)


def _learn(network: torch.nn.Module, loss: torch.Tensor) -> None:
    """Gradients must arrive at the first layer; an HRNet has branches that only end in a map which FCOS leaves out."""
    loss.backward()
    gradients = {name: one.grad for name, one in network.named_parameters() if one.grad is not None}
    assert next(iter(network.named_parameters()))[0] in gradients, "the backbone does not learn"
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), f"{name} has a gradient that is not a number"


def row(backbone: str) -> tuple[str, list[str]]:
    """A backbone's line of the table, and the reasons why an architecture is refused."""
    found = {arch: reason(arch, backbone) for arch in ARCHS}
    cells = ["no" if found[arch] else "yes" for arch in ARCHS]
    line = f"| `{backbone}` | {FAMILIES[backbone]} | " + " | ".join(cells) + " |"
    return line, list(dict.fromkeys(filter(None, found.values())))


def table(backbones: Iterable[str] = FAMILIES) -> str:
    """The generated part of the page."""
    lines = ["| backbone | family | " + " | ".join(f"`{arch}`" for arch in ARCHS) + " |"]
    lines.append("| --- " * (2 + len(ARCHS)) + "|")
    reasons: list[str] = []
    for backbone in backbones:
        line, why = row(backbone)
        lines.append(line)
        reasons += why
    return "\n".join(["", *lines, "", "The reasons, as they are given:", "", *(f"- {one}" for one in reasons), "", ""])


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    after = PART.sub(lambda match: table(), text)
    if "--check" not in sys.argv:
        PAGE.write_text(after, encoding="utf-8")
    elif after != text:
        sys.exit(f"{PAGE.name} is out of date. Run `python tools/dense_backbones.py`.")
