"""Convert constructor arguments, classes and functions to plain data and back, for checkpoints and configuration files.

Checkpoints load with ``weights_only=True``, so they may contain plain data only.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = [
    "CapturesArguments",
    "construct",
    "constructor_arguments",
    "current_path",
    "first_path",
    "import_name",
    "import_object",
    "is_object",
    "json_problem",
    "lost_objects",
    "parse_json",
    "plain_value",
    "read_json",
    "takes",
]

_OBJECT = "<object> "
_MOST_LEVELS = 100  # of nested lists and objects, as in YAML files
_MOST_BYTES = 64 * 2**20  # of a file of a run: results of the 21,000 classes of ImageNet-21k take 5 MB

# Modules in records of version 1 of the pipeline, and their present names. Import paths are stored in configuration
# files, checkpoints and manifests, so a module that moves needs a line here, which must never be removed.
_MOVED = {
    # Modules into which others were merged come first: what has no line in _MOVED_CLASSES was theirs from the start.
    "autotimm.data.formats.recognize": "autotimm.data.formats.recognize",
    "autotimm.data.outline": "autotimm.data.annotations.outlines",
    "autotimm.data.toy": "autotimm.data.toy",
    "autotimm.data.transforms": "autotimm.data.transforms.image_transforms",
    "autotimm.models.detector": "autotimm.models.detection.detector",
    "autotimm.models.features": "autotimm.models.backbone.feature_maps",
    "autotimm.tasks.detection": "autotimm.tasks.detection",
    # All others.
    "autotimm.data.detection": "autotimm.data.dense",
    "autotimm.data.formats.boxes_csv": "autotimm.data.formats.box_csv",
    "autotimm.data.formats.builtin": "autotimm.data.formats.torchvision_sets",
    "autotimm.data.formats.coco_outline": "autotimm.data.annotations.outlines",
    "autotimm.data.formats.csv": "autotimm.data.formats.class_csv",
    "autotimm.data.formats.folder": "autotimm.data.formats.class_folders",
    "autotimm.data.formats.spatial": "autotimm.data.formats.recognize",
    "autotimm.data.instance": "autotimm.data.dense",
    "autotimm.data.jitter": "autotimm.data.transforms.image_transforms",
    "autotimm.data.masks": "autotimm.data.annotations.masks",
    "autotimm.data.objects": "autotimm.data.annotations.objects",
    "autotimm.data.read": "autotimm.data.image_io",
    "autotimm.data.segmentation": "autotimm.data.dense",
    "autotimm.data.spatial": "autotimm.data.transforms.spatial_transforms",
    "autotimm.data.spatial_module": "autotimm.data.dense",
    "autotimm.data.toy_objects": "autotimm.data.toy",
    "autotimm.losses": "autotimm.losses.image_losses",
    "autotimm.losses.dense": "autotimm.losses.pixel_losses",
    "autotimm.metrics.config": "autotimm.metrics.metric_config",
    "autotimm.models.anchors": "autotimm.models.detection.detector",
    "autotimm.models.backbone": "autotimm.models.backbone.pooled",
    "autotimm.models.decoders": "autotimm.models.segmentation.decoders",
    "autotimm.models.dense": "autotimm.models.backbone.feature_maps",
    "autotimm.models.detection": "autotimm.models.detection.build_detector",
    "autotimm.models.layered": "autotimm.models.backbone.pooled",
    "autotimm.models.one_stage": "autotimm.models.detection.one_stage",
    "autotimm.models.opened": "autotimm.models.backbone.pooled",
    "autotimm.models.pooling": "autotimm.models.layers.deterministic",
    "autotimm.models.preprocess": "autotimm.models.layers.normalize",
    "autotimm.models.pyramid": "autotimm.models.layers.feature_pyramid",
    "autotimm.models.resizing": "autotimm.models.layers.deterministic",
    "autotimm.models.roi": "autotimm.models.layers.deterministic",
    "autotimm.models.segmentation": "autotimm.models.segmentation.segmenter",
    "autotimm.models.two_stage": "autotimm.models.detection.two_stage",
    "autotimm.optim.build": "autotimm.optim.build_optimizer",
    "autotimm.optim.find": "autotimm.optim.optimizers",
    "autotimm.tasks.instance": "autotimm.tasks.detection",
    "autotimm.tasks.objects": "autotimm.tasks.detection",
    "autotimm.train.checkpoints": "autotimm.train.callbacks.run_checkpoint",
    "autotimm.train.disturb": "autotimm.train.callbacks.rng_noise",
    "autotimm.train.epochs": "autotimm.train.callbacks.epoch_metrics",
    "autotimm.train.keyed": "autotimm.train.lightning_compat",
    "autotimm.train.recorder": "autotimm.train.callbacks.recorder",
    "autotimm.train.unfinished": "autotimm.train.callbacks.epoch_metrics",
    "autotimm.train.watched": "autotimm.train.callbacks.epoch_metrics",
}
# For modules that were merged: the original path of each class.
_MOVED_CLASSES = {
    "autotimm.data.dense.DetectionDataModule": "autotimm.data.detection.DetectionDataModule",
    "autotimm.data.dense.InstanceSegmentationDataModule": "autotimm.data.instance.InstanceSegmentationDataModule",
    "autotimm.data.dense.SegmentationDataModule": "autotimm.data.segmentation.SegmentationDataModule",
    "autotimm.data.dense.SpatialDataModule": "autotimm.data.spatial_module.SpatialDataModule",
    "autotimm.data.transforms.image_transforms.ScaleJitter": "autotimm.data.jitter.ScaleJitter",
    "autotimm.data.transforms.image_transforms.resize_masks": "autotimm.data.jitter.resize_masks",
    "autotimm.tasks.detection.InstanceSegmentor": "autotimm.tasks.instance.InstanceSegmentor",
    "autotimm.tasks.detection.ObjectTask": "autotimm.tasks.objects.ObjectTask",
    "autotimm.train.callbacks.epoch_metrics.Watched": "autotimm.train.watched.Watched",
}


def current_path(path: str) -> str:
    """The present import path of a class or function, given the path that an older version of autotimm recorded.

    Example:
        >>> current_path("autotimm.tasks.instance.InstanceSegmentor")
        'autotimm.tasks.detection.InstanceSegmentor'
    """
    module, _, name = path.rpartition(".")
    return f"{_MOVED[module]}.{name}" if module in _MOVED else path


def first_path(path: str) -> str:
    """The import path of a class or function in records of version 1; digests use it, so that moves do not change them.

    Example:
        >>> first_path("autotimm.tasks.detection.InstanceSegmentor")
        'autotimm.tasks.instance.InstanceSegmentor'
    """
    module, _, name = path.rpartition(".")
    return _MOVED_CLASSES.get(path) or f"{_FIRST.get(module, module)}.{name}"


_FIRST = {new: old for old, new in reversed(_MOVED.items())}  # of several lines, the first


def import_name(value: Any) -> str:
    """The import path of a class or function.

    Example:
        >>> import_name(Path)
        'pathlib.Path'
    """
    return f"{value.__module__}.{value.__qualname__}"


def import_object(path: str) -> Any:
    """Import ``package.module.Name``, or ``package.module.Class.method``.

    Raises:
        ImportError: If there is no such module or name. Callers turn it into an error for the user.

    Example:
        >>> import_object("pathlib.Path") is Path
        True
    """
    module, _, name = current_path(path).rpartition(".")
    if not module:
        raise ImportError(f"{path!r} names no module")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(str(error)) from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that others have written; everything of ours that reads JSON goes through here.

    A text of a million brackets would end in a ``RecursionError``, here or where what was read is used.

    Raises:
        ValueError: If it is not JSON, or is nested more than 100 levels deep; the message ends a sentence.

    Example:
        >>> parse_json('{"a": [1]}')
        {'a': [1]}
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(_MOST_LEVELS):
        children = (part.values() if type(part) is dict else part for part in level)
        level = [child for part in children for child in part if type(child) is dict or type(child) is list]
        if not level:
            return value
    raise _too_deep()


def json_problem(error: ValueError) -> str:
    """In a few words what :func:`read_json` has found wrong with a file."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}: {error.msg}"
    return "it is not text" if isinstance(error, UnicodeError) else str(error)


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")


def read_json(path: Path, largest: int | None = _MOST_BYTES) -> Any:
    """Read a JSON file that others have written.

    Args:
        path: The file.
        largest: The maximum number of bytes; ``None`` for any number.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not text, not JSON, larger, or nested more than 100 levels deep; the message ends a
            sentence.
    """
    with path.open("rb") as file:
        content = file.read() if largest is None else file.read(largest + 1)  # not by its size: it may be a pipe
    if largest is not None and len(content) > largest:
        raise ValueError(f"it is larger than {largest // 2**20} MB")
    return parse_json(content)


def plain_value(value: Any) -> Any:
    """A constructor argument as plain data.

    Classes and functions become their import path. Any other object becomes a placeholder that :func:`is_object`
    recognizes, and must be given again when the arguments are used.

    Example:
        >>> plain_value({"size": (1, 2), "path": Path("a/b")})
        {'size': [1, 2], 'path': 'a/b'}
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)  # a seed may be a subclass of int, which a checkpoint cannot hold
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    importable = inspect.isclass(value) or inspect.isfunction(value)
    if importable and "<" not in value.__qualname__ and value.__module__ != "__main__":
        return import_name(value)
    described = value.func if isinstance(value, functools.partial) else value if importable else type(value)
    return f"{_OBJECT}{import_name(described)}"


def is_object(value: Any) -> bool:
    """Whether a value is the placeholder of an object that :func:`plain_value` could not convert.

    Example:
        >>> is_object(plain_value(object())), is_object("cross_entropy")
        (True, False)
    """
    return isinstance(value, str) and value.startswith(_OBJECT)


def lost_objects(arguments: Mapping[str, Any]) -> list[str]:
    """Names of the recorded arguments that were objects, or contained one, and must be given again.

    Example:
        >>> lost_objects(plain_value({"lr": 0.1, "loss": object(), "parts": [1, object()]}))
        ['loss', 'parts']
    """

    def lost(value: Any) -> bool:
        if isinstance(value, Mapping):
            return any(map(lost, value.values()))
        return any(map(lost, value)) if isinstance(value, list) else is_object(value)

    return [name for name, value in arguments.items() if lost(value)]


class CapturesArguments:
    """Mixin: an abstract base learns the arguments that its subclass was constructed with, by name.

    A base constructor sees only what subclasses pass on to it. This mixin wraps the constructor of each subclass once,
    when the class is defined, and notes the outermost call. It also sets ``__signature__``, so that ``help()``, editors
    and :func:`inspect.signature` show the options of the base in place of a subclass's ``**options``. Copies, pickles
    and spawned processes are not affected, since they call no constructor.

    Lightning's ``save_hyperparameters`` would collect the arguments of every constructor on the way, also those that a
    subclass fixes and its caller cannot give.

    Example:
        >>> class Base(CapturesArguments):
        ...     def __init__(self, *, seed=42, lr=0.1):
        ...         self.arguments = self._captured_arguments(["seed", "lr"])
        >>> class Net(Base):
        ...     def __init__(self, width, **options):
        ...         super().__init__(lr=0.5, **options)
        >>> Net(3).arguments
        {'width': 3, 'seed': 42}
        >>> inspect.signature(Net)
        <Signature (width, *, seed=42, lr=0.1)>
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the constructor of a subclass, and show all of its arguments."""
        super().__init_subclass__(**kwargs)
        definer = next(base for base in cls.__mro__ if "__init__" in vars(base))
        if definer is cls or not issubclass(definer, CapturesArguments):  # else it is wrapped already
            cls.__init__ = _capturing(cls.__init__)  # type: ignore[method-assign]
        cls.__signature__ = _full_signature(cls)  # type: ignore[attr-defined]

    def _captured_arguments(self, options: Iterable[str]) -> dict[str, Any]:
        """Return the arguments of the outermost constructor call by name; only while that constructor runs.

        Args:
            options: Options of the bases. Those that were not given are included with their defaults, unless a subclass
                in between fixes them: giving such an option again would be an error.
        """
        call: _Call = vars(self)[_CALL]
        given = constructor_arguments(type(self), call.args, call.kwargs)
        shown = inspect.signature(type(self)).parameters
        left_out = call.defaults.keys() & shown.keys() - given.keys()
        return given | {name: call.defaults[name] for name in options if name in left_out}

    def _constructed(self) -> None:
        """Called once, when the outermost constructor has returned: the place for methods that subclasses override."""


_CALL = "_constructor_call"


@dataclass
class _Call:
    """The outermost constructor call, and the options that reached none of the constructors below it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)


def _capturing(init: Callable[..., None]) -> Callable[..., None]:
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(init).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }

    @functools.wraps(init)
    def capturing(self: Any, *args: Any, **kwargs: Any) -> None:
        attributes = vars(self)  # a torch module accepts no attribute before its own constructor has run
        if _CALL in attributes:
            for name, default in options.items():
                if name not in kwargs:
                    attributes[_CALL].defaults.setdefault(name, default)
            init(self, *args, **kwargs)
            return
        attributes[_CALL] = _Call(args, kwargs)
        try:
            init(self, *args, **kwargs)
        finally:
            del attributes[_CALL]
        self._constructed()

    return capturing


def _full_signature(cls: type[Any]) -> inspect.Signature:
    """The arguments of a class, with those that the class above takes by name in place of ``**options``."""
    own = _signature(cls).parameters
    full = {name: parameter for name, parameter in own.items() if parameter.kind is not parameter.VAR_KEYWORD}
    if len(full) < len(own):
        above = next((vars(base)["__signature__"] for base in cls.__mro__[1:] if "__signature__" in vars(base)), None)
        options = above.parameters if above else {}
        # Only what can be given by name alone is an option: a subclass gives the rest itself.
        full |= {
            name: parameter
            for name, parameter in options.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in full
        }
    return inspect.Signature([*full.values()])


def constructor_arguments(cls: type[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor call by name, including defaults; the inverse of :func:`construct`.

    Arguments taken by ``**options`` keep their own names; those taken by ``*args`` become one list of that name.

    Example:
        >>> class Line:
        ...     def __init__(self, width, *points, color="black", **options): ...
        >>> constructor_arguments(Line, (2, "a", "b"), {"dashed": True})
        {'width': 2, 'points': ['a', 'b'], 'color': 'black', 'dashed': True}
    """
    signature = _signature(cls)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            arguments[name] = value
        elif value:
            arguments[name] = list(value)
    return arguments


def construct(cls: type[Any], arguments: Mapping[str, Any]) -> Any:
    """Call a class with arguments in the form of :func:`constructor_arguments`.

    Example:
        >>> construct(dict, {"a": 1})
        {'a': 1}
    """
    signature = _signature(cls)
    var_keyword = {name for name, parameter in signature.parameters.items() if parameter.kind is parameter.VAR_KEYWORD}
    named = {name: value for name, value in arguments.items() if name in {*signature.parameters} - var_keyword}
    bound = inspect.BoundArguments(signature, named)
    others = {name: value for name, value in arguments.items() if name not in named}
    return cls(*bound.args, **bound.kwargs, **others)


def takes(cls: type[Any], arguments: Mapping[str, Any]) -> bool:
    """Whether a class can be called with arguments in the form of :func:`constructor_arguments`.

    Example:
        >>> class Line:
        ...     def __init__(self, width, *points): ...
        >>> takes(Line, {"width": 2, "points": [1]}), takes(Line, {})
        (True, False)
    """
    parameters = _signature(cls).parameters.values()
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    required = {
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind not in variadic
    }
    known = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return required <= arguments.keys() and (takes_any or arguments.keys() <= known)


def _signature(cls: type[Any]) -> inspect.Signature:
    """The signature of the constructor as written in the source; the class may show another one."""
    signature = inspect.signature(cls.__init__)
    return signature.replace(parameters=[*signature.parameters.values()][1:])
