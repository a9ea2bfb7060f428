"""Compare what a run says of its settings, in `config.yaml` and in its manifest, with what its replay says.

What the two files say depends on the version of autotimm and on the surroundings too. A value that only one of two
versions records, and surroundings that are not those of the run, are named as not checked.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from autotimm.config import FitConfig, decided_by_recipe, defaults, options, read_yaml, recorded_argument  # fmt: skip
from autotimm.config.record import RECORD, VERSION, said_sources
from autotimm.errors import join_names
from autotimm.models.backbone.weights import RANDOM_BY_CHOICE, RANDOM_BY_RECORD
from autotimm.records.causes import ManifestDifference
from autotimm.records.digest import config_digest
from autotimm.records.manifest import SOURCES, Manifest
from autotimm.records.readers import read_text
from autotimm.runs.file_contents import Finding, differs, dotted, leaves, same
from autotimm.runs.recorded_run import RecordedRun
from autotimm.runs.replayed_run import Replay
from autotimm.runs.restore import read_config
from autotimm.serialization import current_path

__all__ = ["config_findings", "is_portable", "manifest_findings", "planned", "same_version"]

_FILE = "manifest.json"


def same_version(run: RecordedRun, replay: Replay) -> bool:
    """Whether the code of autotimm that made the run is the code that replays it."""
    return same(*(manifest.environment.get("package") for manifest in (run.manifest, replay.manifest)))


def is_portable(manifest: Manifest) -> bool:
    """Whether a run says that neither threads nor instruction sets change a bit of it."""
    trainer = manifest.inputs.get("config", {}).get("trainer", {})
    return isinstance(trainer, Mapping) and trainer.get("portable") is True


_PLANNED = ("threads", "precision", "processes", "callbacks", "package")


def planned(run: RecordedRun, inputs: Mapping[str, Any], surroundings: Mapping[str, Any]) -> Manifest:
    """The manifest of a run with the settings that its objects have before they are trained.

    Args:
        run: The record.
        inputs: The settings of the objects, see :func:`autotimm.train.run_description.inputs`.
        surroundings: Those of the trainer.
    """
    settings = {name: inputs[name] for name in ("config", "seeds", "keyed")}
    around = {name: surroundings[name] for name in _PLANNED}
    return replace(
        run.manifest, inputs={**run.manifest.inputs, **settings}, environment={**run.manifest.environment, **around}
    )


def manifest_findings(run: RecordedRun, replay: Replay) -> Iterator[Finding | str]:
    """Compare the manifests; what is not checked comes as text."""
    yield from _inputs(run, replay)
    yield from _decisions(run, replay)
    yield from _environment(run, replay)
    yield from _levels(run, replay)
    yield from _results(run, replay)


_MISSING = object()


def _apart(recorded: Any, found: Any) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """The leaves of two nested values that differ, with their paths; ``_MISSING`` stands for one that is not there."""
    a, b = dict(leaves(recorded)), dict(leaves(found))
    for path in dict.fromkeys([*a, *b]):
        pair = a.get(path, _MISSING), b.get(path, _MISSING)
        if _MISSING in pair or not same(*pair):
            yield path, *pair


def _section(run: RecordedRun, replay: Replay, section: str) -> Iterator[tuple[str, Any, Any]]:
    """The values of a section of the manifests that differ, with dotted names."""
    for path, recorded, found in _apart(getattr(run.manifest, section), getattr(replay.manifest, section)):
        yield dotted(path), recorded, found


def _differs(name: str, recorded: Any, found: Any, file: str = _FILE) -> Finding:
    given = {key: value for key, value in (("recorded", recorded), ("found", found)) if value is not _MISSING}
    return differs(f"{file}: {name}", **given)


class _Compared:
    """Tells a value that differs from one that only one of two versions of autotimm records.

    Args:
        run: The record.
        replay: The replay. If both are of one version, a value that one of them lacks differs, too.
    """

    def __init__(self, run: RecordedRun, replay: Replay) -> None:
        self._strict, self._unknown = same_version(run, replay), 0

    def value(self, name: str, recorded: Any, found: Any, file: str = _FILE) -> Iterator[Finding]:
        """The finding on a value that is not the same in both; it is only counted if a version does not know it."""
        if self._strict or _MISSING not in (recorded, found):
            yield _differs(name, recorded, found, file)
        else:
            self._unknown += 1

    def rest(self, where: str) -> Iterator[str]:
        """The line about the values that were counted."""
        if self._unknown:
            are = "value that only" if self._unknown == 1 else "values that only"
            yield f"{where}: {self._unknown} {are} one of the two versions of autotimm records"


def _inputs(run: RecordedRun, replay: Replay) -> Iterator[Finding | str]:
    compared = _Compared(run, replay)
    for name, recorded, found in _section(run, replay, "inputs"):
        if name.partition(".")[0] in ("initial", "start") and replay.first_epoch:
            yield f"{_FILE}: inputs.{name} (the replay begins at a checkpoint)"
        elif name.partition(".")[0] in ("code", "transforms") and not _has_our_code(run, replay, name):
            yield f"{_FILE}: inputs.{name} ({ManifestDifference('inputs', name, recorded, found).words} is another one)"
        else:
            yield from compared.value(f"inputs.{name}", recorded, found)
    yield from compared.rest(f"{_FILE}: inputs")


def _has_our_code(run: RecordedRun, replay: Replay, name: str) -> bool:
    """Whether a digest of code is one of autotimm and its libraries, in the versions that the run was made with."""
    a, b = (manifest.environment.get("versions") for manifest in (run.manifest, replay.manifest))
    config = run.manifest.inputs.get("config", {})
    if name == "code":
        ours = str(config.get("model_class", "")).startswith("autotimm.")
    else:
        ours = config.get("data", {}).get(f"{name.partition('.')[2]}_transforms") is None
    return ours and same_version(run, replay) and a == b


def _decisions(run: RecordedRun, replay: Replay) -> Iterator[Finding | str]:
    compared = _Compared(run, replay)
    for name, recorded, found in _section(run, replay, "decisions"):
        if name.partition(".")[0] not in ("recipe", "weights", "commitment"):
            yield from compared.value(f"decisions.{name}", recorded, found)
    if "search" in run.manifest.decisions and (replay.part or not run.whole):
        yield f"{_FILE}: decisions.search (a replay of the whole run makes the search again)"
    yield from compared.rest(f"{_FILE}: decisions")
    yield from _recipe(run, replay)
    yield from _weights(run, replay)


def _recipe(run: RecordedRun, replay: Replay) -> Iterator[Finding | str]:
    """The replay trains with the recorded recipe, whatever it says: it is compared with what is chosen now."""
    for path, recorded, found in _apart(run.manifest.decisions.get("recipe"), replay.recipe):
        name = f"decisions.recipe.{dotted(path)}".rstrip(".")
        if same_version(run, replay):
            yield _differs(name, recorded, found)
        else:
            yield f"{_FILE}: {name} (another version of autotimm has chosen it)"


def _weights(run: RecordedRun, replay: Replay) -> Iterator[Finding | str]:
    """The origin of the initial weights: the replay has found it again, and the note follows from it."""
    recorded, found = run.manifest.decisions.get("weights"), replay.weights
    if not isinstance(recorded, Mapping) or found is None:
        if recorded != (found and found.as_dict()):
            yield _differs("decisions.weights", recorded, found and found.as_dict())
        return
    if replay.first_epoch:
        yield f"{_FILE}: decisions.weights (the replay begins at a checkpoint)"
        return
    expected, source = found.as_dict(), recorded.get("source")
    from_a_parent = run.manifest.inputs.get("start") is not None  # then the weights are those of another run
    if found.pretrained and not from_a_parent and _asked_weights(read_config(run.folder)) is False:
        yield differs("config.yaml: pretrained", False, "pretrained weights")
    if {source, found.source} <= {"hub", "cache"}:  # what was fetched once is in the cache
        expected |= {"source": source, "note": found.note.replace(f"({found.source},", f"({source},")}
    if found.note == RANDOM_BY_RECORD:
        expected["note"] = yield from _note_of_random(run, recorded.get("note"))
    compared = _Compared(run, replay)
    for path, *pair in _apart(recorded, expected):
        yield from compared.value(f"decisions.weights.{dotted(path)}", *pair)


def _note_of_random(run: RecordedRun, note: Any) -> Generator[str, None, Any]:
    """The note that random weights must have had: they were asked for, or others were not available."""
    asked = _asked_weights(read_config(run.folder))
    reason = isinstance(note, str) and note.startswith("weights: random (") and note != RANDOM_BY_CHOICE
    if asked is not None or not reason:
        return RANDOM_BY_CHOICE if asked is False else "weights: random (a reason)"
    yield f"{_FILE}: decisions.weights.note (why no pretrained weights were available)"
    return note


def _asked_weights(config: FitConfig | dict[str, Any]) -> Any:
    """The option `pretrained` of a run: ``False`` if random weights were asked for, ``None`` if it was left open."""
    if isinstance(config, FitConfig):
        return config.pretrained
    return (config["model"].get("init_args") or {}).get("pretrained")


# What options decide, and no surroundings: the values that a replay repeats.
_BOUND_SURROUNDINGS = {
    "threads", "precision", "processes", "switches.are_deterministic_algorithms_enabled",
    "switches.is_deterministic_algorithms_warn_only_enabled", "switches.backends.cudnn.deterministic",
    "switches.backends.cudnn.benchmark", "switches.utils.deterministic.fill_uninitialized_memory",
}  # fmt: skip


def _environment(run: RecordedRun, replay: Replay) -> Iterator[Finding | str]:
    bound, unknown, project = _Compared(run, replay), 0, False
    for name, recorded, found in _section(run, replay, "environment"):
        if name.partition(".")[0] == "git":
            project = True
        elif name == "threads" and is_portable(run.manifest):
            continue  # it decides nothing, and may be another one
        elif name in _BOUND_SURROUNDINGS or _is_asked_device(run, name) or _is_callback(run, replay, name):
            yield from bound.value(f"environment.{name}", recorded, found)
        elif not same_version(run, replay) and recorded is _MISSING:
            unknown += 1
        else:
            pair = (None if value is _MISSING else value for value in (recorded, found))
            yield f"environment.{name}: {ManifestDifference('environment', name, *pair).words}"
    yield from bound.rest(f"{_FILE}: environment")
    if project:
        yield "environment.git: the code of the project"
    if unknown:
        values = f"{unknown} value{'' if unknown == 1 else 's'}"
        yield f"environment: {values} that the version of autotimm that made the run did not record"


def _is_asked_device(run: RecordedRun, name: str) -> bool:
    trainer = run.manifest.inputs.get("config", {}).get("trainer", {})
    return name == "device" and trainer.get("accelerator", "auto") in ("cpu", "cuda", "mps", "tpu")


def _is_callback(run: RecordedRun, replay: Replay, name: str) -> bool:
    """Whether it is a callback that options ask for, in the versions that the run was made with."""
    versions = [manifest.environment.get("versions") for manifest in (run.manifest, replay.manifest)]
    return name.partition(".")[0] == "callbacks" and same_version(run, replay) and versions[0] == versions[1]


def _levels(run: RecordedRun, replay: Replay) -> Iterator[Finding | str]:
    """The claims of a run before it was verified; earlier versions wrote into its manifest what was checked."""
    strict = same_version(run, replay)
    a, b = run.manifest.levels, replay.manifest.levels
    for name in dict.fromkeys([*a, *b]):
        recorded, found = str(a.get(name)), str(b.get(name))
        if not strict:
            recorded, found = (text.split()[0].rstrip(",") if text else "" for text in (recorded, found))
            recorded = found if recorded == "checked" and found in ("expected", "no") and name != "R0" else recorded
        if recorded != found and name == "R1" and replay.first_epoch and "start" in run.manifest.inputs:
            yield f"{_FILE}: levels.{name} (the replay begins at a checkpoint)"
        elif recorded != found:
            yield _differs(f"levels.{name}", a.get(name, _MISSING), b.get(name, _MISSING))


def _results(run: RecordedRun, replay: Replay) -> Iterator[Finding | str]:
    if not run.finished:
        return
    if not replay.ended:
        yield f"{_FILE}: results"
        return
    # The digest of the last line depends on the id in the first: both ledgers were compared line by line instead. Who
    # decided the options is no result of a replay: their digest is compared with `config.yaml`.
    recorded, found = (
        {name: value for name, value in manifest.results.items() if name not in ("ledger", SOURCES)}
        for manifest in (run.manifest, replay.manifest)
    )
    if run.manifest.results.get("ledger") != run.ledger.last and not run.ledger.problem:
        yield _differs("results.ledger", run.manifest.results.get("ledger"), run.ledger.last)
    for path, *pair in _apart(recorded, found):
        yield _differs(f"results.{dotted(path)}", *pair)


def config_findings(run: RecordedRun, replay: Replay) -> Iterator[Finding | str]:
    """Compare the options: those that the replay was built from are in its manifest, which is compared too."""
    values, nested = read_yaml(str(run.folder / "config.yaml"))
    if nested:
        yield from _objects(run, replay, values)
    else:
        yield from _options(run, replay, values)


def _objects(run: RecordedRun, replay: Replay, values: Mapping[str, Any]) -> Iterator[Finding | str]:
    """Class paths and arguments; the replay writes them in the same form."""
    file = replay.folder / "config.yaml"
    found = read_yaml(str(file))[0] if file.exists() else values  # there is none before the replay
    compared, sharded = _Compared(run, replay), (values.get("trainer") or {}).get("shards") is not None
    free = {("devices",)} if sharded else {("threads",)} if is_portable(run.manifest) else set()
    for path, recorded, now in _apart(values, found):
        same_name = isinstance(recorded, str) and isinstance(now, str) and current_path(recorded) == current_path(now)
        if not (same_name or _changes_nothing(path) or path[1:] in free):
            yield from compared.value(dotted(path), recorded, now, "config.yaml")
    yield from compared.rest("config.yaml")


def _changes_nothing(path: tuple[Any, ...]) -> bool:
    """Whether an argument can change no bit, or is the place of the data, whose content is compared."""
    names = [name for name in path[:3] if name != "init_args"][:2]
    argument = recorded_argument(f"inputs.config.{'.'.join(map(str, names))}") if len(names) == 2 else None
    return argument is not None and (not argument.stages or argument.recorded == "data")


def _options(run: RecordedRun, replay: Replay, values: Mapping[str, Any]) -> Iterator[Finding | str]:
    config, strict = read_config(run.folder), same_version(run, replay)
    assert isinstance(config, FitConfig)
    if strict and str(values.get(RECORD)) != str(VERSION):
        yield Finding("config.yaml", f"it does not say `{RECORD}: {VERSION}` as the file of a run does", damage=True)
    missing = [name for name in options() if name not in values]
    if missing and strict:
        yield Finding("config.yaml", f"it lacks {join_names(missing)}", damage=True)
    elif missing:
        yield f"config.yaml: {join_names(missing)} (unknown to the version that made the run)"
    if replay.config is not None and config.task != replay.config.task:
        yield differs("config.yaml: task", config.task, replay.config.task)
    yield from _decided(run, config)
    yield from _searched(run, config)
    yield from _sources(run, config, strict=strict)
    for name, option in options().items():
        if option.finds and getattr(config, name):
            if run.manifest.decisions.get(option.finds) is None:
                yield Finding(f"config.yaml: {name}", "the manifest does not say what was found")
            yield f"config.yaml: {name} (the search is not made again)"


def _decided(run: RecordedRun, config: FitConfig) -> Iterator[Finding]:
    """The options that a recipe decides: they say what was asked for, or what the recipe has chosen instead."""
    asked = run.manifest.inputs.get("config", {}).get("model", {})
    recipe = run.manifest.decisions.get("recipe") or {}
    for name, argument in decided_by_recipe().items():
        value, left_open = getattr(config, name), defaults()[name]
        expected = asked.get(argument) if asked.get(argument) is not None else recipe.get(argument)
        expected = left_open if expected is None else expected
        if _equal(value, expected):
            continue
        if value == left_open and not run.finished:
            continue  # what was chosen is written at the end
        if value == left_open:
            yield Finding(f"config.yaml: {name}", f"it lacks what was chosen, {expected}", damage=True)
        else:
            yield differs(f"config.yaml: {name}", value, expected)


def _searched(run: RecordedRun, config: FitConfig) -> Iterator[Finding]:
    """The options that a search decides are what it has chosen, and there was one if there is a budget for it."""
    search = run.manifest.decisions.get("search")
    if search is None or not config.search_budget:
        if search is not None or config.search_budget:
            missing = "the manifest has no search" if search is None else "the manifest has a search"
            yield Finding("config.yaml: search_budget", missing)
        return
    if not isinstance(search.get("chosen"), Mapping) or not isinstance(search.get("asked"), Mapping):
        yield Finding(f"{_FILE}: decisions.search", "it does not say what was open and what was chosen", damage=True)
        return
    if search.get("budget") != config.search_budget:
        yield differs("config.yaml: search_budget", config.search_budget, search.get("budget"))
    inputs = run.manifest.inputs.get("config", {})
    for name in (name for name in search["asked"] if name in options()):
        expected = search["chosen"].get(name, search["asked"][name])
        used = [inputs.get(to.part, {}).get(to.name or name) for to in options()[name].to[:1]]
        if used and not _equal(used[0], expected):
            yield differs(f"{_FILE}: decisions.search.chosen.{name}", expected, used[0])


def _sources(run: RecordedRun, config: FitConfig, *, strict: bool) -> Iterator[Finding]:
    """Who decided each option: as the manifest says of them all, and none that cannot have decided the value."""
    said = said_sources(read_text(run.folder / "config.yaml", "the options"))
    recorded = run.manifest.results.get(SOURCES)  # earlier versions have written none
    if recorded != config_digest(said) and (recorded is not None or (strict and run.finished)):
        what = "who decided its options is not what the manifest refers to"
        yield Finding("config.yaml", what, damage=True)
    if not strict:  # other versions have other defaults
        return
    for name, option in options().items():
        value, source = getattr(config, name), said.get(name)
        if source == "default" and value != defaults()[name]:
            yield differs(f"config.yaml: {name}, by default", value, defaults()[name])
        elif source == f"task {config.task}" and value != option.by_task.get(config.task):
            yield differs(f"config.yaml: {name}, by its task", value, option.by_task.get(config.task))
        elif source == "recipe" and name not in (*decided_by_recipe(), "recipe", "epochs"):
            yield Finding(f"config.yaml: {name}", "no recipe decides it")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return current_path(a) == current_path(b)
    return bool(a == b)
