"""The numbers of the recipes: rates by what is learned, by family and by optimizer; sources are in ``recipe.py``.

Settings that suit a backbone, an optimizer and a batch size, with the reason said in one line.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from autotimm.errors import UsageError, number, require, require_choice, sentence
from autotimm.optim.optimizers import find_optimizer

__all__ = [
    "OptimizerOptions",
    "Rate",
    "Recipe",
    "SCHEDULES",
    "Start",
    "choose_recipe",
    "family",
    "rate_of",
    "starting_point",
]


_ADAM_LIKE = (
    "adam", "adamw", "adamwlegacy", "adamc", "adamp", "adabelief", "adopt", "adoptc", "adoptw", "cadamc", "cadamp",
    "cadamw", "cadopt", "cadoptc", "cadoptw", "claprop", "cnadamc", "cnadamw", "laprop", "lapropc", "nadam", "nadamc",
    "nadamlegacy", "nadamw", "radam", "radamlegacy", "radamw", "bnbadam", "bnbadam8bit", "bnbadamw", "bnbadamw8bit",
    "fusedadam", "fusedadamw",
)  # fmt: skip
_LION_LIKE = ("lion", "lionc", "clion", "clionc", "bnblion", "bnblion8bit")
_LAMB_LIKE = ("lamb", "lambc", "lambcd", "lambcw", "lambw", "clamb", "clambw", "fusedlamb")
_SGD_LIKE = (
    "sgd", "sgdc", "sgdp", "sgdw", "csgdc", "csgdp", "csgdw", "momentum", "nesterov", "nesterovw", "bnbsgd",
    "bnbsgd8bit", "fusedsgd",
)  # fmt: skip


class Start(NamedTuple):
    """What a training starts from.

    Attributes:
        lr: Learning rate of the head with AdamW.
        batch_size: The batch size that it is for.
        sgd: SGD's rate per image of the batch.
        layer_decay: Factor per layer.
        backbone_scale: Factor on the backbone's rate.
    """

    lr: float
    batch_size: int
    sgd: float
    layer_decay: float = 1.0
    backbone_scale: float = 1.0


_SGD_SCRATCH, _SGD_CLASSES, _SGD_DENSE = 0.1 / 256, 0.01 / 256, 0.01 / 16
_SCRATCH = {
    "vit": Start(1e-4, 64, _SGD_SCRATCH),
    "convnext": Start(1e-4, 64, _SGD_SCRATCH),
    "cnn": Start(1e-3, 32, _SGD_SCRATCH),
}
_CLASSES = {
    "vit": Start(1e-4, 64, _SGD_CLASSES, 0.7),
    "convnext": Start(1e-4, 64, _SGD_CLASSES, 0.8),
    "cnn": Start(5e-4, 32, _SGD_CLASSES),
}
_OBJECTS = {
    "vit": Start(1e-4, 64, _SGD_DENSE, 0.7),
    "convnext": Start(1e-4, 16, _SGD_DENSE),
    "cnn": Start(1e-4, 16, _SGD_DENSE, backbone_scale=0.1),
}
_PIXELS = dict.fromkeys(_SCRATCH, Start(1e-3, 16, _SGD_DENSE, backbone_scale=0.1))
_TUNING = {"classes": _CLASSES, "boxes": _OBJECTS, "instances": _OBJECTS, "pixels": _PIXELS}


def starting_point(family: str, kind: str, pretrained: bool) -> Start:
    """Where a recipe starts, by family of the backbone and by what is learned."""
    return (_TUNING[kind] if pretrained else _SCRATCH)[family]


class Rate(NamedTuple):
    """Learning rate and weight decay of an optimizer.

    Attributes:
        lr: For the batch size that was asked for.
        weight_decay: For parameters of two dimensions and more.
        splits: Whether the backbone's rate differs from the head's where AdamW's does.
        remark: On the rule, where it is not the usual one.
    """

    lr: float
    weight_decay: float
    splits: bool = False
    remark: str = ""


def rate_of(name: str, optimizer: str | type[Optimizer], start: Start, batch_size: int, given: float | None) -> Rate:
    """Turn AdamW's start into the rate of an optimizer at a batch size; a rate that was given wins.

    Args:
        name: Name or import path of the optimizer.
        optimizer: The optimizer.
        start: From :func:`starting_point`.
        batch_size: Images per optimizer step.
        given: The user's rate.

    Raises:
        UsageError: If the optimizer has no rate of its own, no recipe knows one, and none was given.
    """
    short = name.rpartition(".")[2].lower().rpartition("_")[2]
    adamw = start.lr * (batch_size / start.batch_size) ** 0.5
    if short in _SGD_LIKE:
        rate = Rate(start.sgd * batch_size, 1e-4)
    elif short in _LION_LIKE:
        rate = Rate(adamw / 5, 0.25, splits=True)
    elif short in _LAMB_LIKE:
        rate = Rate(5e-3 * (batch_size / 2048) ** 0.5, 0.02)
    elif short in _ADAM_LIKE:
        rate = Rate(adamw, 0.05, splits=True)
    else:
        rate = Rate(given or _own_rate(name, optimizer), 0.0, remark=" (the optimizer's own default)")
    return rate._replace(lr=given or rate.lr)


def _own_rate(name: str, optimizer: str | type[Optimizer]) -> float:
    parameter = inspect.signature(find_optimizer(optimizer)).parameters.get("lr")
    default = parameter.default if parameter else None
    if not isinstance(default, (int, float)):
        raise UsageError(sentence("lr", name, "given", None, "No recipe knows a learning rate for this optimizer."))
    return float(default)


SCHEDULES = ("constant", "cosine", "linear", "onecycle", "plateau", "step")

# Modules of `timm.models`. Plain transformers: one resolution, layer normalization.
_VIT = (
    "beit", "cait", "convit", "crossvit", "deepseek_vit", "deit", "eva", "gemma4_vit", "mlp_mixer", "naflexvit", "pit",
    "qwen3_vit", "tnt", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos",
    "vision_transformer_sam", "vitamin", "volo", "xcit",
)  # fmt: skip
# Pyramids of blocks with layer normalization, of attention or of large convolutions, and mixtures of both.
_CONVNEXT = (
    "coat", "convnext", "davit", "edgenext", "focalnet", "gcvit", "hiera", "hieradet_sam2", "inception_next",
    "mambaout", "maxxvit", "metaformer", "mvitv2", "nest", "nextvit", "pvt_v2", "rdnet", "sequencer",
    "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "twins",
)  # fmt: skip
_FAMILIES = {f"timm.models.{name}": "vit" for name in _VIT} | {f"timm.models.{name}": "convnext" for name in _CONVNEXT}
_SPOKEN = {"vit": "ViT", "convnext": "ConvNeXt/Swin", "cnn": "CNN"}
_TUNED_FOR = {"classes": "", "boxes": " on objects", "instances": " on objects", "pixels": " on pixels"}


@dataclass(frozen=True)
class OptimizerOptions:
    """What a user may say about optimization. ``None`` leaves a field to the recipe.

    Args:
        lr: Learning rate after warm-up, above 0.
        optimizer: Name of an optimizer of timm or torch, an import path, or a class.
        weight_decay: At least 0. Parameters of one dimension (biases, norms) never decay.
        layer_decay: Factor in (0, 1] on the learning rate per layer, counted from the head; 1 is off.
        backbone_scale: Factor in (0, 1] on the learning rate of the whole backbone; 1 is off.
        schedule: One of :data:`SCHEDULES`.
        warmup_epochs: Epochs, or parts of one, over which the rate rises first; 0 is off.
        gradient_clip: Largest norm of the gradient; 0 is off.

    Raises:
        UsageError: If a value is none of these.
    """

    lr: float | None = None
    optimizer: str | type[Optimizer] | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    schedule: str | None = None
    warmup_epochs: float | None = None
    gradient_clip: float | None = None
    backbone_scale: float | None = None

    def __post_init__(self) -> None:
        """Check what was given."""
        _check(self.lr, "lr", "a number above 0", self.lr is None or number(self.lr) > 0, "Leave it out for a recipe.")
        for name, off in (("weight_decay", "0"), ("warmup_epochs", "0"), ("gradient_clip", "0")):
            value = getattr(self, name)
            _check(value, name, "a number of at least 0", value is None or number(value) >= 0, f"Give {off} for none.")
        for name in ("layer_decay", "backbone_scale"):
            value = getattr(self, name)
            _check(value, name, "in (0, 1]", value is None or 0 < number(value) <= 1, "Give 1 for none.")
        if self.schedule is not None:
            require_choice("schedule", "the optimizer options", self.schedule, SCHEDULES)
        if self.optimizer is not None:
            find_optimizer(self.optimizer)


def _check(value: object, name: str, must: str, condition: bool, do: str) -> None:
    require(condition, name, "the optimizer options", must, value, do)


@dataclass(frozen=True)
class Recipe:
    """Everything that is decided about optimization.

    Attributes:
        optimizer: Name, import path or class of the optimizer.
        lr: Learning rate after warm-up, of the head.
        weight_decay: For parameters of two dimensions and more.
        layer_decay: Factor per layer, 1 without layer-wise rates.
        backbone_scale: Factor on the rate of the backbone, on top of the layers'; 1 without.
        schedule: One of :data:`SCHEDULES`.
        warmup_epochs: Epochs of warm-up; ``None`` is 5 % of the run.
        gradient_clip: Largest norm of the gradient; 0 is off.
        reason: Why, in one line.
    """

    optimizer: str | type[Optimizer]
    lr: float
    weight_decay: float
    layer_decay: float = 1.0
    backbone_scale: float = 1.0
    schedule: str = "cosine"
    warmup_epochs: float | None = None
    gradient_clip: float = 1.0
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a manifest or a checkpoint."""
        return asdict(self) | {"optimizer": _spelled(self.optimizer)}


def _spelled(optimizer: str | type[Optimizer]) -> str:
    return optimizer if isinstance(optimizer, str) else f"{optimizer.__module__}.{optimizer.__qualname__}"


def family(network: nn.Module) -> str:
    """Say whether a network is built around a ``"vit"``, a ``"convnext"`` (or Swin, or hybrid), or a ``"cnn"``.

    Example:
        >>> import timm
        >>> family(timm.create_model("test_vit"))
        'vit'
    """
    for module in network.modules():
        if found := _FAMILIES.get(type(module).__module__):
            return found
    return "cnn"


def choose_recipe(
    network: nn.Module,
    *,
    pretrained: bool,
    batch_size: int,
    options: OptimizerOptions | None = None,
    kind: str = "classes",
) -> Recipe:
    """Choose learning rate, weight decay, layer decay and schedule. What the user gave always wins.

    The learning rate of AdamW, and of all that follow Adam:

    ===================================  ===========  ============  ====================  =================
    what is learned, family              fine-tuning  from scratch  layer decay           rate of backbone
    ===================================  ===========  ============  ====================  =================
    classes, ViT-like                    1e-4 at 64   1e-4 at 64    0.7                   as the head's
    classes, ConvNeXt, Swin, hybrids     1e-4 at 64   1e-4 at 64    0.8                   as the head's
    classes, CNN                         5e-4 at 32   1e-3 at 32    none                  as the head's
    objects, ViT-like                    1e-4 at 64   1e-4 at 64    0.7                   as the head's
    objects, ConvNeXt, Swin, hybrids     1e-4 at 16   1e-4 at 64    none                  as the head's
    objects, CNN                         1e-4 at 16   1e-3 at 32    none                  a tenth
    pixels, ViT, ConvNeXt, Swin, hybrid  1e-3 at 16   1e-4 at 64    none                  a tenth
    pixels, CNN                          1e-3 at 16   1e-3 at 32    none                  a tenth
    ===================================  ===========  ============  ====================  =================

    Layer decay and the backbone's tenth are for fine-tuning alone: they keep what was learned before, and random layers
    have learned nothing that is worth keeping.

    The numbers are those of published recipes, rounded.

    - Classes: BEiT (Bao et al., ICLR 2022) and MAE (He et al., CVPR 2022) fine-tune ViTs with AdamW, weight decay 0.05
      and layer decay 0.65 to 0.75, ConvNeXt (Liu et al., CVPR 2022) with 0.7 to 0.8; 1e-3 is Adam's own rate (Kingma &
      Ba, ICLR 2015).
    - Objects, in boxes or outlined: ViTDet (Li et al., ECCV 2022, arXiv:2203.16527) trains with AdamW at 1e-4 for 64
      images and layer decay 0.7 for its smallest ViT; Swin (Liu et al., ICCV 2021) and ConvNeXt detect at 1e-4 for 16;
      DETR (Carion et al., ECCV 2020, arXiv:2005.12872) gives its ResNet 1e-5 and the rest 1e-4.
    - Pixels: SegFormer (Xie et al., NeurIPS 2021, arXiv:2105.15203) trains its decoder at ten times the rate of its
      backbone, 6e-5 for 16 images; Swin's segmenter has the same 6e-5, ConvNeXt's 1e-4. Their rate falls linearly, ours
      as a cosine.

    Other batch sizes scale an adaptive optimizer's rate by the square root of the ratio (Malladi et al., "On the SDEs
    and scaling rules for adaptive gradient algorithms", NeurIPS 2022; timm's training script does the same) and SGD's
    linearly (Goyal et al., "Accurate, large minibatch SGD", 2017). Other optimizers:

    - SGD and its kin: 0.1 at batch 256 from scratch (Goyal et al.), 0.01 fine-tuning (Kornblith et al., "Do better
      ImageNet models transfer better?", CVPR 2019), for objects and pixels 0.01 at batch 16 (RetinaNet, Lin et al.,
      ICCV 2017); weight decay 1e-4, and no rate of its own for the backbone.
    - Lion: a fifth of AdamW's rate and five times its weight decay (Chen et al., "Symbolic discovery of optimization
      algorithms", NeurIPS 2023, says 3 to 10 for both).
    - LAMB: 5e-3 at batch 2048, weight decay 0.02 (Wightman et al., "ResNet strikes back", 2021).
    - Any other: its own default rate, without weight decay.

    Gradients are clipped to norm 1 (as Steiner et al., "How to train your ViT?", TMLR 2022).

    Args:
        network: The network; its family is read from its modules. Only one with a ``backbone`` can have a rate for it.
        pretrained: Whether its backbone starts from pretrained weights.
        batch_size: Images per optimizer step, over all devices and accumulated batches.
        options: What the user said.
        kind: What is learned, see :class:`autotimm.types.DataSpec`.

    Raises:
        UsageError: If the optimizer is unknown, or has no learning rate of its own and none was given.
    """
    options = options or OptimizerOptions()
    optimizer = options.optimizer or "adamw"
    of, name = family(network), _spelled(optimizer)
    given = {key: value for key, value in vars(options).items() if value is not None and key not in ("optimizer", "lr")}
    start = starting_point(of, kind, pretrained)
    rate = rate_of(name, optimizer, start, batch_size, options.lr)
    splits = rate.splits and isinstance(getattr(network, "backbone", None), nn.Module)
    chosen = {
        "weight_decay": rate.weight_decay,
        "layer_decay": start.layer_decay,
        "backbone_scale": start.backbone_scale if splits else 1.0,
        **given,
    }
    what = ("fine-tuning" + _TUNED_FOR[kind]) if pretrained else "from scratch"
    label = find_optimizer(optimizer).__name__
    usual = f"{_SPOKEN[of]} {what}, {label}, batch {batch_size}{rate.remark}"
    reason = f"lr {rate.lr:.3g}: " + (usual if options.lr is None else "as given")
    for key, said in (("layer_decay", "layer decay"), ("backbone_scale", "backbone x")):
        reason += f"; {said} {chosen[key]:g}" if chosen[key] != 1 else ""
    return Recipe(optimizer=optimizer, lr=rate.lr, **chosen, reason=reason)
