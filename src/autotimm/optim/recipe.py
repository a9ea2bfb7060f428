"""Recipes: learning rate, weight decay, layer decay and schedule that suit a backbone, an optimizer and a batch size.

:func:`choose_recipe` combines the user's :class:`OptimizerOptions` with the tables at the end of this module. The
sources of their numbers are listed in its docstring.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from autotimm.errors import UsageError, number, require, require_choice, sentence
from autotimm.optim.optimizers import find_optimizer

__all__ = ["SCHEDULES", "OptimizerOptions", "Recipe", "choose_recipe", "family"]

SCHEDULES = ("constant", "cosine", "linear", "onecycle", "plateau", "step")
"""Names of the learning-rate schedules; see :func:`autotimm.optim.factor`."""


@dataclass(frozen=True)
class OptimizerOptions:
    """The user's choices for optimization. ``None`` leaves a field to the recipe.

    Args:
        lr: Learning rate after warm-up, above 0.
        optimizer: Name of an optimizer of timm or torch, an import path, or a class.
        weight_decay: Weight decay, at least 0. It never applies to parameters with one dimension (biases, norms).
        layer_decay: Factor in (0, 1] on the learning rate per layer, counted from the head. 1 switches it off.
        backbone_scale: Factor in (0, 1] on the learning rate of the whole backbone. 1 switches it off.
        schedule: One of :data:`SCHEDULES`.
        warmup_epochs: Length of the warm-up in epochs, also fractional. 0 switches it off.
        gradient_clip: Maximum norm of the gradient. 0 switches clipping off.

    Raises:
        UsageError: If a value is out of range, or the optimizer or the schedule is unknown.
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
        """Validate the fields."""
        owner = "the optimizer options"
        positive = self.lr is None or number(self.lr) > 0
        require(positive, "lr", owner, "a number above 0", self.lr, "Leave it out to use the recipe's.")
        for name in ("weight_decay", "warmup_epochs", "gradient_clip"):
            value = getattr(self, name)
            valid = value is None or number(value) >= 0
            require(valid, name, owner, "a number of at least 0", value, "Give 0 to switch it off.")
        for name in ("layer_decay", "backbone_scale"):
            value = getattr(self, name)
            valid = value is None or 0 < number(value) <= 1
            require(valid, name, owner, "in (0, 1]", value, "Give 1 to switch it off.")
        if self.schedule is not None:
            require_choice("schedule", owner, self.schedule, SCHEDULES)
        if self.optimizer is not None:
            find_optimizer(self.optimizer)


@dataclass(frozen=True)
class Recipe:
    """All settings of the optimization.

    Attributes:
        optimizer: Name, import path or class of the optimizer.
        lr: Learning rate of the head after warm-up.
        weight_decay: Weight decay of parameters with two or more dimensions.
        layer_decay: Factor on the learning rate per layer, counted from the head; 1 is off.
        backbone_scale: Factor on the learning rate of the backbone, on top of the layer decay; 1 is off.
        schedule: One of :data:`SCHEDULES`.
        warmup_epochs: Length of the warm-up in epochs; ``None`` is 5 % of the run.
        gradient_clip: Maximum norm of the gradient; 0 is off.
        reason: Explanation in one line.
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
        """Convert to a dictionary of plain data, for a manifest or a checkpoint."""
        return asdict(self) | {"optimizer": _optimizer_path(self.optimizer)}


def choose_recipe(
    network: nn.Module,
    *,
    pretrained: bool,
    batch_size: int,
    options: OptimizerOptions | None = None,
    kind: str = "classes",
    head_fitted: bool = False,
) -> Recipe:
    """Choose learning rate, weight decay, layer decay and schedule. The user's options take precedence.

    The learning rate of AdamW and of other optimizers derived from Adam, at a batch size:

    ===================================  ============  ============  ====================  =================
    targets, family                      fine-tuning   from scratch  layer decay           backbone rate
    ===================================  ============  ============  ====================  =================
    classes, ViT-like                    1e-4 at 64    1e-4 at 64    0.7                   as the head's
    classes, ConvNeXt, Swin, hybrids     1e-4 at 64    1e-4 at 64    0.8                   as the head's
    classes, CNN                         5e-4 at 32    1e-3 at 32    none                  as the head's
    classes, CNN with a fitted head      2.5e-4 at 32                none                  as the head's
    objects, ViT-like                    1e-4 at 64    1e-4 at 64    0.7                   as the head's
    objects, ConvNeXt, Swin, hybrids     1e-4 at 16    1e-4 at 64    none                  as the head's
    objects, CNN                         1e-4 at 16    1e-3 at 32    none                  a tenth
    pixels, ViT, ConvNeXt, Swin, hybrid  1e-3 at 16    1e-4 at 64    none                  a tenth
    pixels, CNN                          1e-3 at 16    1e-3 at 32    none                  a tenth
    ===================================  ============  ============  ====================  =================

    Layer decay and the lower rate of the backbone apply to fine-tuning only: they protect pretrained weights.

    The numbers are rounded from published recipes:

    - Classes: BEiT (Bao et al., ICLR 2022) and MAE (He et al., CVPR 2022) fine-tune ViTs with AdamW, weight decay 0.05
      and layer decay 0.65 to 0.75, ConvNeXt (Liu et al., CVPR 2022) with 0.7 to 0.8. 1e-3 is Adam's default rate
      (Kingma & Ba, ICLR 2015).
    - A fitted head: fine-tuning needs to go less far, and large steps distort the features that the head was fitted to
      (Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022).
    - Objects (boxes or instances): ViTDet (Li et al., ECCV 2022, arXiv:2203.16527) trains with AdamW at 1e-4 for 64
      images and layer decay 0.7 for its smallest ViT. Swin (Liu et al., ICCV 2021) and ConvNeXt detectors use 1e-4 for
      16 images. DETR (Carion et al., ECCV 2020, arXiv:2005.12872) trains its ResNet at 1e-5 and the rest at 1e-4.
    - Pixels: SegFormer (Xie et al., NeurIPS 2021, arXiv:2105.15203) trains its decoder at ten times the rate of its
      backbone, 6e-5 for 16 images. Swin's segmenter uses the same 6e-5, ConvNeXt's 1e-4. These recipes decay the rate
      linearly, this one with a cosine.

    For other batch sizes, the rate of an adaptive optimizer scales with the square root of the ratio (Malladi et al.,
    "On the SDEs and scaling rules for adaptive gradient algorithms", NeurIPS 2022; timm's training script does the
    same) and that of SGD linearly (Goyal et al., "Accurate, large minibatch SGD", 2017). Other optimizers:

    - SGD and its variants: 0.1 at batch 256 from scratch (Goyal et al.), 0.01 for fine-tuning (Kornblith et al., "Do
      better ImageNet models transfer better?", CVPR 2019), for objects and pixels 0.01 at batch 16 (RetinaNet, Lin et
      al., ICCV 2017). Weight decay 1e-4, and the same rate for the backbone.
    - Lion: a fifth of AdamW's rate and five times its weight decay (Chen et al., "Symbolic discovery of optimization
      algorithms", NeurIPS 2023, recommend 3 to 10 for both).
    - LAMB: 5e-3 at batch 2048, weight decay 0.02 (Wightman et al., "ResNet strikes back", 2021).
    - Any other: its own default rate, without weight decay.

    Gradients are clipped to norm 1 (as in Steiner et al., "How to train your ViT?", TMLR 2022).

    Args:
        network: The network. Its family is determined from its modules, see :func:`family`. The backbone gets a rate of
            its own only if the network has an attribute ``backbone``.
        pretrained: Whether the backbone starts from pretrained weights.
        batch_size: Images per optimizer step, over all devices and accumulated batches.
        options: The user's choices.
        kind: Kind of the targets, see :class:`autotimm.types.DataSpec`.
        head_fitted: Whether the head was fitted to features of the pretrained backbone before the first step.

    Returns:
        The recipe, with the reason for its learning rate.

    Raises:
        UsageError: If the optimizer is unknown, or has no default learning rate and none was given.
    """
    options = options or OptimizerOptions()
    optimizer = options.optimizer or "adamw"
    network_family, name = family(network), _optimizer_path(optimizer)
    given = {key: value for key, value in vars(options).items() if value is not None and key not in ("optimizer", "lr")}
    base = (_AFTER_HEAD if head_fitted else _FINE_TUNING[kind] if pretrained else _FROM_SCRATCH)[network_family]
    rate = _rate(name, optimizer, base, batch_size, options.lr)
    scale_backbone = rate.scales_backbone and isinstance(getattr(network, "backbone", None), nn.Module)
    settings = {
        "weight_decay": rate.weight_decay,
        "layer_decay": base.layer_decay,
        "backbone_scale": base.backbone_scale if scale_backbone else 1.0,
        **given,
    }
    start = ("fine-tuning" + _KIND_TEXTS[kind]) if pretrained else "from scratch"
    start += " after a fitted head" if head_fitted else ""
    label = find_optimizer(optimizer).__name__
    rule = f"{_FAMILY_TEXTS[network_family]} {start}, {label}, batch {batch_size}{rate.remark}"
    reason = f"lr {rate.lr:.3g}: " + (rule if options.lr is None else "as given")
    for key, text in (("layer_decay", "layer decay"), ("backbone_scale", "backbone x")):
        reason += f"; {text} {settings[key]:g}" if settings[key] != 1 else ""
    return Recipe(optimizer=optimizer, lr=rate.lr, **settings, reason=reason)


def family(network: nn.Module) -> str:
    """Return the family of a network's backbone, which decides its recipe.

    Args:
        network: A network that contains a timm model.

    Returns:
        ``"vit"`` for plain transformers, ``"convnext"`` for ConvNeXt, Swin and hybrids, and ``"cnn"`` for all others.

    Example:
        >>> import timm
        >>> family(timm.create_model("test_vit"))
        'vit'
    """
    for module in network.modules():
        if known := _FAMILIES.get(type(module).__module__):
            return known
    return "cnn"


def _optimizer_path(optimizer: str | type[Optimizer]) -> str:
    return optimizer if isinstance(optimizer, str) else f"{optimizer.__module__}.{optimizer.__qualname__}"


class _Base(NamedTuple):
    """The base values of a recipe.

    Attributes:
        lr: Learning rate of the head with AdamW at ``batch_size``.
        batch_size: Images per optimizer step that ``lr`` is meant for.
        sgd_per_image: Learning rate of SGD divided by the batch size.
        layer_decay: Factor per layer.
        backbone_scale: Factor on the rate of the backbone.
    """

    lr: float
    batch_size: int
    sgd_per_image: float
    layer_decay: float = 1.0
    backbone_scale: float = 1.0


class _Rate(NamedTuple):
    """Learning rate and weight decay of an optimizer.

    Attributes:
        lr: Learning rate at the given batch size.
        weight_decay: Weight decay of parameters with two or more dimensions.
        scales_backbone: Whether ``backbone_scale`` of the base values applies to this optimizer.
        remark: Addition to the reason, for an unusual rule.
    """

    lr: float
    weight_decay: float
    scales_backbone: bool = False
    remark: str = ""


def _rate(name: str, optimizer: str | type[Optimizer], base: _Base, batch_size: int, given: float | None) -> _Rate:
    """Scale the base values to an optimizer and a batch size. A ``given`` learning rate takes precedence."""
    short = name.rpartition(".")[2].lower().rpartition("_")[2]
    adamw = base.lr * (batch_size / base.batch_size) ** 0.5
    if short in _SGD_LIKE:
        rate = _Rate(base.sgd_per_image * batch_size, 1e-4)
    elif short in _LION_LIKE:
        rate = _Rate(adamw / 5, 0.25, scales_backbone=True)
    elif short in _LAMB_LIKE:
        rate = _Rate(5e-3 * (batch_size / 2048) ** 0.5, 0.02)
    elif short in _ADAM_LIKE:
        rate = _Rate(adamw, 0.05, scales_backbone=True)
    else:
        rate = _Rate(given or _default_lr(name, optimizer), 0.0, remark=" (the optimizer's own default)")
    return rate._replace(lr=given or rate.lr)


def _default_lr(name: str, optimizer: str | type[Optimizer]) -> float:
    parameter = inspect.signature(find_optimizer(optimizer)).parameters.get("lr")
    default = parameter.default if parameter else None
    if not isinstance(default, (int, float)):
        raise UsageError(sentence("lr", name, "given", None, "There is no default learning rate for this optimizer."))
    return float(default)


# Base values by family, for training from scratch and, by kind of the targets, for fine-tuning.
_SGD_SCRATCH, _SGD_CLASSES, _SGD_DENSE = 0.1 / 256, 0.01 / 256, 0.01 / 16
_FROM_SCRATCH = {
    "vit": _Base(1e-4, 64, _SGD_SCRATCH),
    "convnext": _Base(1e-4, 64, _SGD_SCRATCH),
    "cnn": _Base(1e-3, 32, _SGD_SCRATCH),
}
_CLASSES = {
    "vit": _Base(1e-4, 64, _SGD_CLASSES, 0.7),
    "convnext": _Base(1e-4, 64, _SGD_CLASSES, 0.8),
    "cnn": _Base(5e-4, 32, _SGD_CLASSES),
}
_AFTER_HEAD = _CLASSES | {"cnn": _Base(2.5e-4, 32, _SGD_CLASSES / 2)}
_OBJECTS = {
    "vit": _Base(1e-4, 64, _SGD_DENSE, 0.7),
    "convnext": _Base(1e-4, 16, _SGD_DENSE),
    "cnn": _Base(1e-4, 16, _SGD_DENSE, backbone_scale=0.1),
}
_PIXELS = dict.fromkeys(_FROM_SCRATCH, _Base(1e-3, 16, _SGD_DENSE, backbone_scale=0.1))
_FINE_TUNING = {"classes": _CLASSES, "boxes": _OBJECTS, "instances": _OBJECTS, "pixels": _PIXELS}

# Names of optimizers, without the prefix of a package or of Lookahead.
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

# Modules of `timm.models`. Plain transformers: one resolution, layer normalization.
_VIT = (
    "beit", "cait", "convit", "crossvit", "deepseek_vit", "deit", "eva", "gemma4_vit", "mlp_mixer", "naflexvit", "pit",
    "qwen3_vit", "tnt", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos",
    "vision_transformer_sam", "vitamin", "volo", "xcit",
)  # fmt: skip
# Hierarchical networks with layer normalization: attention, large convolutions, or both.
_CONVNEXT = (
    "coat", "convnext", "davit", "edgenext", "focalnet", "gcvit", "hiera", "hieradet_sam2", "inception_next",
    "mambaout", "maxxvit", "metaformer", "mvitv2", "nest", "nextvit", "pvt_v2", "rdnet", "sequencer",
    "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "twins",
)  # fmt: skip
_FAMILIES = {f"timm.models.{name}": "vit" for name in _VIT} | {f"timm.models.{name}": "convnext" for name in _CONVNEXT}

# Words of the reason.
_FAMILY_TEXTS = {"vit": "ViT", "convnext": "ConvNeXt/Swin", "cnn": "CNN"}
_KIND_TEXTS = {"classes": "", "boxes": " on objects", "instances": " on objects", "pixels": " on pixels"}
