"""The likely causes of a difference of two runs, by the differences of their manifests.

Likely, never certain: to be sure, the step has to be replayed with each factor set back.

What an option is called and which stages it acts on is declared beside the option, and what acts outside the options is
declared in :mod:`autotimm.records.bit_factors`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from autotimm.config import Argument, recorded_argument
from autotimm.records.bit_factors import FACTORS, BitFactor, factor_named, known_to_both, rank
from autotimm.records.ledger_diff import Difference
from autotimm.records.manifest import SECTIONS, Manifest
from autotimm.records.replay_versions import replay_versions
from autotimm.serialization import current_path

__all__ = ["ManifestDifference", "differences", "likely_cause"]


class ManifestDifference(NamedTuple):
    """A value in which two manifests differ.

    Attributes:
        section: ``inputs``, ``environment``, ``decisions``, ``results`` or ``levels``.
        name: The dotted name in the section: ``seeds.task``.
        a: The value in the first manifest; ``None`` if it is missing.
        b: The value in the second.
    """

    section: str
    name: str
    a: Any
    b: Any

    @property
    def words(self) -> str:
        """The difference in words: ``the learning rate: 0.001 was recorded, 0.002 was found``."""
        name = _called(self)
        if self.section == "inputs" and self.name.startswith(("data.", "frozen.")):
            return name
        if any(_is_digest(value) for value in (self.a, self.b)):
            return name
        if self.path == "inputs.start.kind":
            a, b = (_SOURCES.get(value, _shown(value)) for value in (self.a, self.b))
            return f"{name}: {a} was recorded, {b} was found"
        verb = "is used" if self.section == "environment" else "was found"
        return f"{name}: {_shown(self.a)} was recorded, {_shown(self.b)} {verb}"

    @property
    def path(self) -> str:
        """Section and name, with dots: ``inputs.seeds.task``."""
        return f"{self.section}.{self.name}"

    @property
    def factor(self) -> BitFactor | None:
        """The factor outside the options whose value it is, if it is one."""
        return factor_named(self.name) if self.section == "environment" else None

    @property
    def argument(self) -> Argument | None:
        """The constructor argument whose value it is, or the decision on one, if it is one that an option declares."""
        return recorded_argument(self.path)


_SOURCES = {None: "the constructor", "weights": "another run", "checkpoint": "a checkpoint", "program": "the program"}
# What the other values of a manifest are called. The longest name that a value's name begins with counts.
_WORDS = {
    "inputs.seeds.task": "another seed of the model",
    "inputs.seeds.data": "another seed of the data module",
    "inputs.seeds.trainer": "another seed of the trainer",
    "inputs.seeds.streams": "another seed of the stream `{rest}`",
    "inputs.config": "the option `{last}`",
    "inputs.data": "other files, or other contents of them",
    "inputs.splits": "another split",
    "inputs.transforms": "the settings or the code of a transform ({rest})",
    "inputs.code": "the code of the task",
    "inputs.initial": "the initial weights",
    "inputs.start": "the source of the initial weights ({rest})",
    "inputs.start.kind": "the source of the initial weights",
    "inputs.start.parent.checkpoint": "the checkpoint that the initial weights are from",
    "inputs.frozen": "which parameters are trained",
    "inputs.keyed": "a data loader with an order of its own",
    "environment.replay_versions": "the version of the {rest}",
    "environment.package": "the code of autotimm",
    "environment.git": "the code of the project",
    "environment.callbacks": "the callback {rest}",
    "environment.processes": "the number of processes",
    "environment.precision": "the precision",
    "environment.device": "the device",
    "decisions.weights": "other pretrained weights",
    "decisions.dropped": "which unreadable samples were dropped",
    "decisions": "the decision on `{last}`",
}


def _called(difference: ManifestDifference) -> str:
    """What a value is called in a sentence."""
    if (factor := difference.factor) is not None:
        return factor.words
    path = difference.path
    if (argument := difference.argument) is not None and not _within(path, "decisions.weights"):
        decided = difference.section == "decisions"
        return argument.words.replace("the option", "the decision on", 1) if decided else argument.words
    name = max((name for name in _WORDS if _within(path, name)), key=len, default="")
    rest = path.removeprefix(f"{name}.")
    return _WORDS[name].format(rest=rest, last=rest.rpartition(".")[2]) if name else path


def _within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


_OPTIONS = "what options declare"
_FACTORS = "what the table of factors declares"
_REPLAY = "environment.replay_versions"
_AUTOTIMM = "environment.versions.autotimm"
_CODE = ("inputs.code", "environment.package", "environment.git")
_DATA = ("inputs.data", "inputs.splits")
_SURROUNDINGS = ("environment.device", "environment.processes", "environment.precision")
_DROPPED = "decisions.dropped"
_CALLBACKS = "environment.callbacks"
# What can cause a difference in a stage, the likeliest first.
_SUSPECTS = {
    "start": (_REPLAY, "inputs.start", "environment.processes", "inputs.seeds.task", "inputs.seeds.streams.init",
              "decisions.weights", _OPTIONS, _FACTORS, *_CODE, "inputs.initial"),
    "order": (_REPLAY, _DROPPED, "inputs.seeds.trainer", "inputs.seeds.streams.order", *_DATA, "inputs.keyed",
              _OPTIONS, "inputs.seeds.data", _FACTORS, *_CODE),
    "inputs": (_REPLAY, "inputs.data", "inputs.transforms.train", _OPTIONS, "inputs.seeds.trainer",
               "inputs.seeds.streams.augment", "inputs.keyed", _FACTORS, *_SURROUNDINGS, *_CODE),
    "forward": (_REPLAY, "inputs.seeds.trainer", "inputs.seeds.streams.step", _OPTIONS, _CALLBACKS, *_SURROUNDINGS,
                _FACTORS, *_CODE),
    "rate": (_REPLAY, _OPTIONS, "inputs.data", _CALLBACKS, _FACTORS, *_CODE),
    "update": (_REPLAY, "inputs.frozen", _OPTIONS, _CALLBACKS, *_SURROUNDINGS, _FACTORS, *_CODE),
    "validation": (_REPLAY, _DROPPED, _OPTIONS, "inputs.transforms.eval", *_DATA, *_SURROUNDINGS, _FACTORS, *_CODE),
    "length": (_REPLAY, _OPTIONS, *_DATA, _CALLBACKS, "results.status"),
}  # fmt: skip

_UNEXPECTED = {
    "start": "Nothing that is recorded differs. Likely weights are drawn outside of the stream `init`, as in a "
             "constructor of your own, or from another generator: draw them inside of "
             "`repro.scope(seed, 'init', 'mine')`.",
    "order": "Nothing that is recorded differs. Likely the data set lists its samples in another order.",
    "inputs": "Nothing that is recorded differs. Likely a transform draws from a generator of its own, or files "
              "changed during the run.",
    "rate": "Nothing that is recorded differs. Likely a callback, or a schedule that reads the clock, sets the rate.",
    "validation": "Nothing that is recorded differs. Likely a metric keeps a state, or draws random numbers.",
    "length": "Nothing that is recorded differs. Likely one of the two was stopped early.",
    "ledger": "Nothing that is recorded differs. Likely another version of autotimm wrote one of the two ledgers.",
}  # fmt: skip
_OUTSIDE = "a callback, another process, or a non-deterministic kernel"


def differences(a: Manifest, b: Manifest) -> list[ManifestDifference]:
    """All values in which two manifests differ, by sections and names; ``volatile`` is left out.

    Example:
        >>> recorded, other = (Manifest({"seeds": {"task": seed}}, {}) for seed in (1, 2))
        >>> differences(recorded, other)
        [ManifestDifference(section='inputs', name='seeds.task', a=1, b=2)]
    """
    pairs: list[ManifestDifference] = []
    for section in SECTIONS:
        if section != "volatile":
            values, others = (_flat(_completed(manifest, section)) for manifest in (a, b))
            names = sorted(values.keys() | others.keys())
            pairs += [ManifestDifference(section, name, values.get(name), others.get(name)) for name in names]
    return [
        difference
        for difference in pairs
        if not _same(difference.a, difference.b)
        and (difference.section != "environment" or known_to_both(difference.name, a.environment, b.environment))
    ]


def _completed(manifest: Manifest, section: str) -> Mapping[str, Any]:
    """A section, with what a record of an earlier version leaves unsaid."""
    values: Mapping[str, Any] = getattr(manifest, section)
    return {**values, "replay_versions": replay_versions(values)} if section == "environment" else values


def likely_cause(
    difference: Difference,
    manifests: Iterable[ManifestDifference] = (),
    *,
    recorded: Manifest | None = None,
    files: Sequence[str] = (),
) -> str:
    """Name the likely causes of a difference in words, the likeliest first.

    Args:
        difference: The first difference of the ledgers.
        manifests: The differences of the manifests, see :func:`differences`.
        recorded: The first manifest: it tells which kernels were allowed, and on which device the run computed.
        files: Names of files that were added, removed or changed, if they are known.

    Returns:
        One sentence or a few.

    Example:
        >>> difference = Difference("rate", epoch=0, batch=0, step=1, field="lr", recorded="0x1p-10", found="0x1p-9")
        >>> print(likely_cause(difference, [ManifestDifference("inputs", "config.lr", 0.001, 0.002)]))
        Likely the learning rate: 0.001 was recorded, 0.002 was found.
    """
    # Reasons and notes explain other values.
    texts = ("reason", "note")
    manifests = [value for value in manifests if value.section != "levels" and value.name.split(".")[-1] not in texts]
    device = recorded.environment.get("device") if recorded is not None else None
    unrecorded = _unrecorded(difference.stage, recorded, device)
    suspects = _suspects(difference.stage, manifests, device)
    if suspects:
        words = _words_of(suspects, files)
        shown, rest = words[:3], len(words) - 3
        more = f"; {rest} more of what the manifests say differ{'s' if rest == 1 else ''}" if rest > 0 else ""
        # Between versions the code of autotimm always differs: what the older one did not record counts too.
        only_code = {suspect.path for suspect in suspects} <= {_AUTOTIMM, "environment.package"}
        return f"Likely {'; or '.join(shown)}{more}.{unrecorded if only_code else ''}"
    others = [value.words for value in manifests if value.section != "results"]
    if others:
        return f"Nothing that usually matters here differs. What does differ: {'; '.join(others[:3])}."
    return f"{_unexpected(difference, recorded)}{unrecorded}"


def _unrecorded(stage: str, recorded: Manifest | None, device: str | None) -> str:
    """What may be the cause all the same, since the version that wrote the record did not know it."""
    if recorded is None or "switches" not in recorded.environment:
        return ""
    missing = [
        factor.words
        for factor in FACTORS
        if factor.section in ("switches", "libraries")
        and factor.acts(stage, device)
        and factor.name not in recorded.environment.get(factor.section, {})
    ]
    more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
    return f" The record is older and does not tell: {', '.join(missing[:2])}{more}." if missing else ""


def _suspects(stage: str, manifests: Sequence[ManifestDifference], device: str | None) -> list[ManifestDifference]:
    """The differences that can act on a stage, the likeliest first."""
    suspects = [
        difference for group in _SUSPECTS.get(stage, ()) for difference in _members(group, stage, manifests, device)
    ]
    # An argument that no option declares is one of a class of the user's own: it may do anything.
    suspects += [
        difference
        for difference in manifests
        if _within(difference.path, "inputs.config") and difference.argument is None
    ]
    return _said_once(suspects)


def _words_of(suspects: Sequence[ManifestDifference], files: Sequence[str]) -> list[str]:
    words: dict[str, None] = {}  # a set that keeps its order
    for difference in suspects:
        other_files = files and _within(difference.path, "inputs.data")
        words[_files(files) if other_files else difference.words] = None
    return list(words)


def _members(
    group: str, stage: str, manifests: Sequence[ManifestDifference], device: str | None
) -> list[ManifestDifference]:
    """The differences of a group that can act on a stage, the likeliest first."""
    if group == _OPTIONS:
        acting = [
            (argument.stages.index(stage), difference)
            for difference in manifests
            if (argument := difference.argument) is not None and stage in argument.stages
        ]
        return [difference for _, difference in sorted(acting, key=lambda pair: pair[0])]
    if group == _FACTORS:
        factors = [
            (rank(factor), difference)
            for difference in manifests
            if (factor := difference.factor) is not None and factor.acts(stage, device)
        ]
        return [difference for _, difference in sorted(factors, key=lambda pair: pair[0])]
    return [difference for difference in manifests if _within(difference.path, group)]


def _said_once(suspects: list[ManifestDifference]) -> list[ManifestDifference]:
    """Without what says less: a factor that another one decides, and an option left open beside the decision on it."""
    decided = {key for difference in suspects if (factor := difference.factor) is not None for key in factor.sets}
    if any(difference.path == _AUTOTIMM for difference in suspects):
        decided.add("package")
    dropped = [
        difference for difference in suspects if difference.section == "environment" and difference.name in decided
    ]
    if any(_within(difference.path, "inputs.start") for difference in suspects):
        dropped += [difference for difference in suspects if _within(difference.path, "decisions.weights")]
    # That the initial weights differ is what is to be explained.
    dropped += [difference for difference in suspects if difference.path == "inputs.initial" and len(suspects) > 1]
    groups: dict[str, list[ManifestDifference]] = {}
    for difference in suspects:
        if difference.section in ("inputs", "decisions") and difference.argument is not None:
            groups.setdefault(difference.name.rpartition(".")[-1], []).append(difference)
    for group in groups.values():
        if any(difference.section == "decisions" for difference in group):
            known = [difference for difference in group if None not in (difference.a, difference.b)] or group
            kept = [difference for difference in known if difference.section == "inputs"] or known[:1]
            dropped += [difference for difference in group if difference not in kept]
    return [difference for difference in suspects if difference not in dropped]


def _files(files: Sequence[str]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"other files: {', '.join(files[:3])}{more} changed"


def _unexpected(difference: Difference, recorded: Manifest | None) -> str:
    """The likely cause where the manifests are equal."""
    if recorded is not None and not recorded.inputs.get("keyed", True) and difference.stage in ("order", "inputs"):
        return "Likely the data loader: it is the caller's own, so that its order and augmentation are not keyed."
    switches = recorded.environment.get("switches", {}) if recorded is not None else {}
    if difference.stage not in ("forward", "update"):
        return _UNEXPECTED.get(difference.stage, _UNEXPECTED["ledger"])
    if switches.get("are_deterministic_algorithms_enabled") is False:
        return ("Nothing that is recorded differs. Likely a non-deterministic kernel: the run was made with "
                "deterministic=False, which allows them.")  # fmt: skip
    since = difference.equal_until
    when = "at the start" if since is None else f"after step {since}"
    if difference.stage == "forward" and since is not None and since + 1 == difference.step:
        return ("Nothing that is recorded differs, and the weights were equal before this step. Likely a "
                "non-deterministic kernel, or a layer that draws from a generator of its own.")  # fmt: skip
    what = f"something outside of the records changed the weights {when}: {_OUTSIDE}"
    return f"Nothing that is recorded differs. Likely {what}."


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as a flat one with dotted names."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat


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
