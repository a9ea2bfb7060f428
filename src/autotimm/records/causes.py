"""What may have caused a difference of two runs, by what their manifests say.

Likely, never certain: to be sure, one has to replay the step with each factor set back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from autotimm.records.ledger_diff import Difference
from autotimm.records.manifest import SECTIONS, Manifest
from autotimm.serialization import current_path

__all__ = ["ManifestDifference", "differences", "likely_cause"]


class ManifestDifference(NamedTuple):
    """A value in which two manifests differ.

    Attributes:
        section: ``inputs``, ``environment``, ``decisions``, ``results`` or ``levels``.
        name: Where in the section, with dots: ``seeds.task``.
        a: The value in the first; ``None`` if it is missing.
        b: The value in the second.
    """

    section: str
    name: str
    a: Any
    b: Any

    @property
    def words(self) -> str:
        """The difference in words: ``the learning rate: 0.001 was recorded, 0.002 was found``."""
        name = f"{self.section}.{self.name}"
        matches = ((re.fullmatch(pattern, name), words) for pattern, words in _WORDS)
        said = next((match.expand(words) for match, words in matches if match), name)
        if name.startswith("inputs.data.") or any(_is_digest(one) for one in (self.a, self.b)):
            return said
        found = "is used" if self.section == "environment" else "was found"
        return f"{said}: {_shown(self.a)} was recorded, {_shown(self.b)} {found}"


# From a name in the manifest to words. The first pattern that matches the whole name counts.
_WORDS = (
    (r"(inputs\.config\.(.*\.)?|decisions\.(recipe\.)?)lr", "the learning rate"),
    (r"inputs\.config\.(?:.*\.)?(\w+)", r"the option `\1`"),
    (r"inputs\.seeds\.task", "another seed of the model"),
    (r"inputs\.seeds\.data", "another seed of the data module"),
    (r"inputs\.seeds\.trainer", "another seed of the trainer"),
    (r"inputs\.seeds\.streams\.(\w+)", r"another seed of the stream `\1`"),
    (r"inputs\.data\..*", "other files, or other contents of them"),
    (r"inputs\.splits", "another split"),
    (r"inputs\.transforms\.names", "other transforms"),
    (r"inputs\.transforms\.(train|eval)", r"the settings or the code of a transform (\1)"),
    (r"(inputs\.code|environment)\.package", "the code of autotimm"),
    (r"(inputs\.code|environment)\.git\b.*", "the code of the project"),
    (r"environment\.callbacks\.(.*)", r"the callback \1"),
    (r"inputs\.code\.(task|model)", "the code of the task"),
    (r"inputs\.weights\b.*|decisions\.(weights|pretrained)\b.*", "other pretrained weights"),
    (r"inputs\.initial", "the initial weights"),
    (r"inputs\.keyed", "a data loader with an order of its own"),
    (r"environment\.threads", "the number of threads"),
    (r"environment\.processes", "the number of processes"),
    (r"environment\.precision", "the precision"),
    (r"environment\.device", "the device"),
    (r"environment\.versions\.(.*)", r"the version of \1"),
    (r"environment\.hardware\.cpu", "the processor"),
    (r"environment\.hardware\.instructions", "the instruction set"),
    (r"environment\.hardware\.(.*)", r"the hardware (\1)"),
    (r"environment\.switches\.(.*)", r"the switch torch.\1"),
    (r"environment\.variables\.(.*)", r"the environment variable \1"),
    (r"decisions\.(?:recipe\.)?(.*)", r"the decision on `\1`"),
)

_CODE = r"inputs\.code\..*|environment\.(package|git\b.*)"
_DATA = r"inputs\.data\..*|inputs\.splits"
_KERNELS = (
    r"environment\.threads|environment\.hardware\.instructions",
    r"environment\.(switches|variables)\..*",
    r"environment\.(device|processes|precision)|environment\.hardware\.(devices|cudnn|cuda|driver|cpu|machine)",
    r"environment\.versions\.torch",
)
_CALLBACKS = r"environment\.callbacks\..*"
_OPTIONS = r"inputs\.config\.(.*\.)?"
# What can cause a difference in a stage, the likeliest first.
_SUSPECTS = {
    "start": (r"environment\.processes", r"inputs\.seeds\.(task|streams\.init)",
              r"inputs\.weights\b.*|decisions\.(weights|pretrained)\b.*",
              _OPTIONS + r"(seed|backbone|pretrained|num_classes|drop\w*|head\w*|\w+_class)", _CODE,
              r"environment\.versions\.(timm|torch)", r"inputs\.initial"),
    "order": (r"inputs\.seeds\.(trainer|streams\.order)", _DATA, r"inputs\.keyed",
              _OPTIONS + r"(batch_size|balanced?\w*|val_split)|decisions\.batch_size.*", r"inputs\.seeds\.data", _CODE),
    "inputs": (r"inputs\.data\..*", r"inputs\.transforms\.(train|names)",
               _OPTIONS + r"(image_size|aug\w*|mixup\w*|cutmix\w*|train_transforms)",
               r"inputs\.seeds\.(trainer|streams\.augment)", r"inputs\.keyed",
               r"environment\.versions\.(torchvision|pillow|torch|numpy)", _CODE, *_KERNELS),
    "forward": (r"inputs\.seeds\.(trainer|streams\.step)", _CALLBACKS, *_KERNELS,
                _OPTIONS + r"(precision|deterministic|compile\w*|drop\w*|head\w*|loss|class_weights|label_\w+)",
                _OPTIONS + r"(mixup|cutmix)\w*", _CODE,
                r"environment\.versions\.(timm|pytorch-lightning)"),
    "rate": (_OPTIONS + r"(lr\w*|learning_rate|sched\w*|warmup\w*|recipe|epochs|max_epochs|steps|max_steps)",
             r"decisions\.(lr|recipe|batch_size).*", r"inputs\.data\..*", _CALLBACKS, _CODE),
    "update": (_OPTIONS + r"(optimizer\w*|weight_decay|momentum|ema\w*|(gradient_)?clip\w*|accumulat\w*|freeze\w*)",
               _OPTIONS + r"(lr\w*|layer_decay|backbone_scale|recipe)|decisions\..*", _CALLBACKS, *_KERNELS, _CODE,
               r"environment\.versions\.(timm|pytorch-lightning)"),
    "validation": (_OPTIONS + r"(eval_batch_size|metrics\w*|val_\w+)", r"inputs\.transforms\.(eval|names)", _DATA,
                   r"environment\.versions\.torchmetrics", *_KERNELS, _CODE),
    "length": (_OPTIONS + r"(epochs|max_epochs|steps|max_steps|max_time|batch_size|patience|limit_\w+)",
               r"decisions\.batch_size.*", _DATA, r"results\.status"),
}  # fmt: skip

_UNEXPECTED = {
    "start": "Nothing that is recorded differs. Likely weights are drawn outside of the stream `init`, as in a "
             "constructor of one's own, or from a generator of their own: draw them inside of "
             "`repro.scope(seed, 'init', 'mine')`.",
    "order": "Nothing that is recorded differs. Likely the data set lists its samples in another order.",
    "inputs": "Nothing that is recorded differs. Likely a transform draws from a generator of its own, or files "
              "changed while the run went on.",
    "rate": "Nothing that is recorded differs. Likely a callback, or a schedule that reads the clock, sets the rate.",
    "validation": "Nothing that is recorded differs. Likely a metric keeps a state, or draws random numbers.",
    "length": "Nothing that is recorded differs. Likely one of the two was stopped early.",
    "ledger": "Nothing that is recorded differs. Likely another version of autotimm wrote one of the two ledgers.",
}  # fmt: skip
_OUTSIDE = "a callback, another process, or a kernel that is not deterministic"


def differences(a: Manifest, b: Manifest) -> list[ManifestDifference]:
    """All values in which two manifests differ, by sections and names; ``volatile`` is left out.

    Example:
        >>> recorded, found = (Manifest({"seeds": {"task": seed}}, {}) for seed in (1, 2))
        >>> differences(recorded, found)
        [ManifestDifference(section='inputs', name='seeds.task', a=1, b=2)]
    """
    out = []
    for section in SECTIONS:
        if section != "volatile":
            one, other = _flat(getattr(a, section)), _flat(getattr(b, section))
            names = sorted(one.keys() | other.keys())
            pairs = [(name, one.get(name), other.get(name)) for name in names]
            out += [ManifestDifference(section, *pair) for pair in pairs if not _same(*pair[1:])]
    return out


def likely_cause(
    difference: Difference,
    manifests: Iterable[ManifestDifference] = (),
    *,
    recorded: Manifest | None = None,
    files: Sequence[str] = (),
) -> str:
    """Say in words what is likely behind a difference, the likeliest first.

    Args:
        difference: The first difference of the ledgers.
        manifests: In what the manifests differ, see :func:`differences`.
        recorded: The first manifest: says what was allowed to vary where nothing differs.
        files: Names of files that were added, removed or changed, where that is known.

    Returns:
        One sentence or a few. It claims no more than is known.

    Example:
        >>> found = Difference("rate", epoch=0, batch=0, step=1, field="lr", recorded="0x1p-10", found="0x1p-9")
        >>> print(likely_cause(found, [ManifestDifference("inputs", "config.lr", 0.001, 0.002)]))
        Likely the learning rate: 0.001 was recorded, 0.002 was found.
    """
    # Reasons and notes are sentences about the values beside them.
    texts = ("reason", "note")
    manifests = [one for one in manifests if one.section != "levels" and one.name.split(".")[-1] not in texts]
    suspects = _suspects(difference.stage, manifests, files)
    if suspects:
        shown, rest = suspects[:3], len(suspects) - 3
        more = f"; {rest} more of what the manifests say differ{'s' if rest == 1 else ''}" if rest > 0 else ""
        return f"Likely {'; or '.join(shown)}{more}."
    others = [one.words for one in manifests if one.section != "results"]
    if others:
        return f"Nothing that usually matters here differs. What does differ: {'; '.join(others[:3])}."
    return _unexpected(difference, recorded)


def _suspects(stage: str, manifests: Sequence[ManifestDifference], files: Sequence[str]) -> list[str]:
    found = [
        one
        for pattern in _SUSPECTS.get(stage, ())
        for one in manifests
        if re.fullmatch(pattern, f"{one.section}.{one.name}")
    ]
    words: dict[str, None] = {}  # a set that keeps its order
    for one in _said_once(found):
        other_files = files and one.section == "inputs" and one.name.startswith("data.")
        words[_files(files) if other_files else one.words] = None
    return list(words)


def _said_once(found: list[ManifestDifference]) -> list[ManifestDifference]:
    """Without what says less, where an option and the decisions on it differ: an option left open has no value."""
    groups: dict[str, list[ManifestDifference]] = {}
    for one in found:
        if f"{one.section}.{one.name}".startswith(("inputs.config.", "decisions.")):
            groups.setdefault(one.name.rpartition(".")[-1], []).append(one)
    dropped: list[ManifestDifference] = []
    for group in groups.values():
        if any(one.section == "decisions" for one in group):
            known = [one for one in group if None not in (one.a, one.b)] or group
            kept = [one for one in known if one.section == "inputs"] or known[:1]
            dropped += [one for one in group if one not in kept]
    return [one for one in found if one not in dropped]


def _files(files: Sequence[str]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"other files: {', '.join(files[:3])}{more} changed"


def _unexpected(difference: Difference, recorded: Manifest | None) -> str:
    """What is left where the manifests are equal."""
    if recorded is not None and not recorded.inputs.get("keyed", True) and difference.stage in ("order", "inputs"):
        return "Likely the data loader: it is the caller's own, so that its order and augmentation are not keyed."
    switches = recorded.environment.get("switches", {}) if recorded is not None else {}
    if difference.stage not in ("forward", "update"):
        return _UNEXPECTED.get(difference.stage, _UNEXPECTED["ledger"])
    if switches.get("are_deterministic_algorithms_enabled") is False:
        return ("Nothing that is recorded differs. Likely a kernel that is not deterministic: the run was made with "
                "deterministic=False, which allows them.")  # fmt: skip
    since = difference.equal_until
    when = "at the start" if since is None else f"after step {since}"
    if difference.stage == "forward" and since is not None and since + 1 == difference.step:
        return ("Nothing that is recorded differs, and the weights were equal before this step. Likely a kernel that "
                "is not deterministic, or a layer that draws from a generator of its own.")  # fmt: skip
    what = f"something outside of the records changed the weights {when}: {_OUTSIDE}"
    return f"Nothing that is recorded differs. Likely {what}."


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    out: dict[str, Any] = {}
    for name, one in value.items():
        out |= _flat(one, f"{prefix}{name}.") if isinstance(one, Mapping) else {f"{prefix}{name}": one}
    return out


def _same(a: Any, b: Any) -> bool:
    # True == 1 == 1.0 in Python, not in a configuration; and a class may have moved since it was recorded.
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, str) and isinstance(b, str):
        return current_path(a) == current_path(b)
    return type(a) is type(b) and bool(a == b)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16,}", value) is not None


def _shown(value: Any) -> str:
    words = {None: "none", True: "on", False: "off"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
