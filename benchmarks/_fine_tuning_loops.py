"""How other libraries fine-tune, as loops from their published settings, on the batches that autotimm trains on.

- :func:`fine_tune`: fastai 2.8's ``vision_learner(...).fine_tune(epochs)`` with its defaults. One epoch with a frozen
  backbone, whose batch normalization is trained, then the given number with all layers, the backbone at a hundredth of
  the head's rate; each phase is one cycle of rate and momentum. The head concatenates average and maximum pooling and
  has a hidden layer of 512. The last epoch is tested, as fastai does it.
- :func:`automm`: AutoGluon 1.4's AutoMM with its defaults for images: AdamW at 1e-4 with a weight decay of 1e-3, layer
  decay 0.9, a tenth of the steps for warm-up and then a cosine, gradients clipped to norm 1, validation twice in an
  epoch, and a greedy soup of the best three.
- :func:`logistic`: scikit-learn's ``LogisticRegression`` with its defaults on standardized frozen features.

Order, augmentation and pixels are those of :class:`autotimm.ImageDataModule` for the same seed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import group_parameters
from torch import Tensor, nn
from torchmetrics.functional.classification import multilabel_average_precision

from autotimm import ImageDataModule

__all__ = ["PEERS", "Scores", "automm", "fine_tune", "logistic", "metrics"]

Scores = dict[str, float]


class Backbone(nn.Module):
    """A timm model without a head, after the normalization that its weights expect."""

    def __init__(self, name: str, weights: str | None, *, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = timm.create_model(name, num_classes=0), pooled
        if weights is not None:
            # The file has a head for the classes that it was trained on.
            missing = self.model.load_state_dict(load_file(weights), strict=False).missing_keys
            assert not missing, missing
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(self.model.pretrained_cfg[name]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        images = (images.float() / 255 - self.mean) / self.std
        return self.model(images) if self.pooled else self.model.forward_features(images)


def batches(data: ImageDataModule, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The training batches of an epoch, from 0."""
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    for batch in loader:
        yield batch.images, batch.targets


def loss_of(data: ImageDataModule) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy, or that of each label."""
    if data.spec.multi_label:
        return lambda logits, targets: nn.functional.binary_cross_entropy_with_logits(logits, targets.float())
    return nn.functional.cross_entropy


def metrics(logits: Tensor, targets: Tensor, several: bool) -> Scores:
    """The score (accuracy, or mean average precision of several labels) and the loss."""
    if several:
        score = multilabel_average_precision(logits.sigmoid(), targets.long(), num_labels=targets.shape[1])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, targets.float())
    else:
        score, loss = (logits.argmax(1) == targets).float().mean(), nn.functional.cross_entropy(logits, targets)
    return {"score": float(score), "loss": float(loss)}


@torch.inference_mode()
def outputs(model: nn.Module, data: ImageDataModule, split: str) -> tuple[Tensor, Tensor]:
    """What a network makes of a split, and the targets."""
    model.eval()
    found = [(model(batch.images), batch.targets) for batch in data.eval_loader(data.tables[split])]
    return torch.cat([output for output, _ in found]), torch.cat([targets for _, targets in found])


def evaluated(model: nn.Module, data: ImageDataModule, split: str) -> Scores:
    """The metrics of a split."""
    return metrics(*outputs(model, data, split), data.spec.multi_label)


# fastai


class _ConcatPool(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], dim=1)


def _fastai_head(features: int, classes: int) -> nn.Sequential:
    linear = [nn.Linear(2 * features, 512, bias=False), nn.Linear(512, classes, bias=False)]
    norms = [nn.BatchNorm1d(2 * features), nn.BatchNorm1d(512)]
    for layer, norm in zip(linear, norms, strict=True):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.constant_(norm.bias, 1e-3)
    return nn.Sequential(
        _ConcatPool(), norms[0], nn.Dropout(0.25), linear[0], nn.ReLU(), norms[1], nn.Dropout(0.5), linear[1]
    )


def _cosine(start: float, middle: float, end: float, peak: float, at: float) -> float:
    """Two half waves, from ``start`` to ``middle`` at ``peak`` and on to ``end``."""
    low, high, place = (start, middle, at / peak) if at < peak else (middle, end, (at - peak) / (1 - peak))
    return low + (1 + math.cos(math.pi * (1 - place))) * (high - low) / 2


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm))


def _fastai_optimizer(backbone: nn.Module, head: nn.Module, *, frozen: bool) -> torch.optim.AdamW:
    groups: list[dict[str, Any]] = []
    for part, module in (("backbone", backbone), ("head", head)):
        norms = {id(weight) for each in module.modules() if _is_norm(each) for weight in each.parameters()}
        plain = norms | {id(each.bias) for each in module.modules() if getattr(each, "bias", None) is not None}
        for name, weight in module.named_parameters():
            weight.requires_grad_(not frozen or part == "head" or id(weight) in norms)
            decay = 0.0 if id(weight) in plain else 0.01
            groups.append({"params": [weight], "part": part, "weight_decay": decay, "name": f"{part}.{name}"})
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.95, 0.99), eps=1e-5)


def fine_tune(data: ImageDataModule, backbone: str, weights: str | None, epochs: int, seed: int) -> dict[str, Scores]:
    """Train as fastai does."""
    torch.manual_seed(seed)
    body = Backbone(backbone, weights, pooled=False)
    head = _fastai_head(body.model.num_features, len(data.class_names))
    model, loss, base, done = nn.Sequential(body, head), loss_of(data), 2e-3, 0
    phases = [
        (1, {"backbone": base / 10, "head": base}, 0.99, 25.0),  # frozen
        (epochs, {"backbone": base / 2 / 100, "head": base / 2}, 0.3, 5.0),
    ]
    for length, rates, peak, divisor in phases:
        optimizer = _fastai_optimizer(body, head, frozen=done == 0)
        steps, step = length * len(data.train_dataloader()), 0
        for _ in range(length):
            model.train()
            for images, targets in batches(data, done):
                momentum = _cosine(0.95, 0.85, 0.95, peak, step / steps)
                for group in optimizer.param_groups:
                    rate = rates[group["part"]]
                    group["lr"] = _cosine(rate / divisor, rate, rate / 1e5, peak, step / steps)
                    group["betas"] = (momentum, 0.99)
                optimizer.zero_grad()
                loss(model(images), targets).backward()
                optimizer.step()
                step += 1
            done += 1
    return {"val": evaluated(model, data, "val"), "test": evaluated(model, data, "test")}


# AutoGluon

_BEST = 3  # networks of the soup


def _automm_groups(model: nn.Sequential) -> list[dict[str, Any]]:
    body, head = model[0].model, model[1]
    layers = group_parameters(body, body.group_matcher(), reverse=True)
    depth = max(layers.values()) + 1
    groups = [
        {"params": [weight], "rate": 1e-4 * 0.9 ** (depth - layers[name]), "weight_decay": 1e-3 * (weight.ndim > 1)}
        for name, weight in body.named_parameters()
    ]
    return groups + [
        {"params": [weight], "rate": 1e-4, "weight_decay": 1e-3 * (weight.ndim > 1)} for weight in head.parameters()
    ]


def automm(data: ImageDataModule, backbone: str, weights: str | None, epochs: int, seed: int) -> dict[str, Scores]:
    """Train as AutoMM does."""
    torch.manual_seed(seed)
    body = Backbone(backbone, weights, pooled=True)
    model = nn.Sequential(body, nn.Linear(body.model.num_features, len(data.class_names)))
    optimizer, loss = torch.optim.AdamW(_automm_groups(model)), loss_of(data)
    length = len(data.train_dataloader())
    steps, step = epochs * length, 0
    warm_up, looks = max(1, round(0.1 * steps)), {max(1, length // 2), length}
    best: list[tuple[float, Mapping[str, Tensor]]] = []
    for epoch in range(epochs):
        for place, (images, targets) in enumerate(batches(data, epoch), 1):
            model.train()
            part = min(step / warm_up, 0.5 * (1 + math.cos(math.pi * max(0, step - warm_up) / max(1, steps - warm_up))))
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * part
            optimizer.zero_grad()
            loss(model(images), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if place in looks:
                best.append((evaluated(model, data, "val")["score"], copy.deepcopy(model.state_dict())))
                best = sorted(best, key=lambda scored: -scored[0])[:_BEST]
    model.load_state_dict(_soup(model, data, best))
    return {"val": evaluated(model, data, "val"), "test": evaluated(model, data, "test")}


def _soup(model: nn.Module, data: ImageDataModule, best: list[tuple[float, Mapping[str, Tensor]]]) -> Any:
    """The average of the best, as far as each of them makes it no worse."""
    (score, kept), *others = best
    members = [kept]
    for _, state in others:
        together = [*members, state]
        mean = {
            name: torch.stack([each[name].double() for each in together]).mean(0).to(first.dtype)
            for name, first in state.items()
        }
        model.load_state_dict(mean)
        reached = evaluated(model, data, "val")["score"]
        if reached >= score:
            score, kept, members = reached, mean, together
    return kept


# scikit-learn


def logistic(data: ImageDataModule, backbone: str, weights: str | None, epochs: int, seed: int) -> dict[str, Scores]:
    """Fit a logistic regression to features of images that are not augmented; no epoch, and no seed."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    body = Backbone(backbone, weights, pooled=True)
    found = {split: outputs(body, data, split) for split in ("train", "val", "test")}
    regression: Any = LogisticRegression(max_iter=2_000)
    if data.spec.multi_label:
        regression = OneVsRestClassifier(regression)
    fitted = make_pipeline(StandardScaler(), regression).fit(*(part.numpy() for part in found["train"]))
    scores = {}
    for split in ("val", "test"):
        features, targets = found[split]
        logits = torch.from_numpy(fitted.decision_function(features.numpy())).float()
        if logits.ndim == 1:  # of two classes
            logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
        scores[split] = metrics(logits, targets, data.spec.multi_label)
    return scores


PEERS = {"fastai": fine_tune, "AutoMM": automm, "logistic": logistic}
