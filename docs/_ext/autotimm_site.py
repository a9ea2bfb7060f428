"""What the site takes from the package while it is built, so that nothing of it has to be kept in git.

    ```{public-names} autotimm.losses     a table of a package's public names, and a page for each of them
    ```
    ```{fit-options}                      the options of `autotimm fit`, a table per group
    ```
    ```{verbs}                            the help of every verb of the command line
    ```

A body of `public-names` lists the names to show; without one it shows all names of the package that `autotimm` itself
does not export. `:results-of:` adds the classes that the named callables return and that have no public name.
"""

from __future__ import annotations

import inspect
import os
import re
import typing
from abc import ABC
from collections.abc import Iterator
from enum import Enum
from functools import cache
from importlib import import_module
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

import autotimm

# The only module of the package that is named here and is not public: the command line exports no list of its verbs.
from autotimm.cli.main import VERBS
from autotimm.config import Option, defaults, options

PACKAGE = autotimm.__name__
GENERATED = "api/generated"
BORROWED = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md", "benchmarks": "benchmarks/RESULTS.md"}
LISTING = re.compile(
    r"^```\{public-names\} (?P<package>\S+)\n(?::results-of: (?P<results>.*)\n)?(?P<names>(?:\w+\n)*)```$", re.MULTILINE
)
_log = logging.getLogger(__name__)


# ---- which names are public, and under which of its paths a thing is documented


def resolve(path: str) -> object:
    """The object behind a dotted path, such as ``autotimm.Run.verify``.

    Raises:
        AttributeError: If there is none.
    """
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise AttributeError(path)


def public_path(package: str, name: str) -> str:
    """The shortest public path of a name: ``autotimm.data.DataModule`` is documented as ``autotimm.DataModule``."""
    return f"{PACKAGE}.{name}" if name in autotimm.__all__ else f"{package}.{name}"


def names_of(package: str, listed: list[str]) -> list[str]:
    """The paths that a listing shows."""
    names = listed or [name for name in import_module(package).__all__ if name not in autotimm.__all__]
    return [public_path(package, name) for name in names]


def result_of(path: str) -> type:
    """The class that a function or method returns."""
    function = inspect.unwrap(typing.cast(typing.Callable[..., object], resolve(path)))
    result = typing.get_type_hints(function)["return"]
    return next(part for part in (result, *typing.get_args(result)) if inspect.isclass(part))


def results_of(paths: str) -> list[str]:
    """The paths of the classes that callables return; they move with the source, which is why nobody names them."""
    classes = [result_of(f"{PACKAGE}.{path.strip()}") for path in paths.split(",") if path.strip()]
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in classes]


def listings(docs: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every page that lists public names, with the paths that it shows."""
    for page in sorted((docs / "api").glob("*.md")):
        paths: list[str] = []
        for found in LISTING.finditer(page.read_text(encoding="utf-8")):
            paths += names_of(found["package"], found["names"].split()) + results_of(found["results"] or "")
        if paths:
            yield page, paths


@cache
def documented_paths(docs: Path) -> dict[int, str]:
    """The path under which each public object has its page, by identity."""
    return {id(resolve(path)): path for _, listed in listings(docs) for path in listed}


def documented_classes(docs: Path) -> set[object]:
    """The public classes."""
    values = (resolve(path) for path in documented_paths(docs).values())
    return {value for value in values if inspect.isclass(value)}


# ---- a page for each name


def members(cls: type, documented: set[object]) -> list[tuple[str, str]]:
    """What a class adds, with a docstring: by itself, or through bases of ours that have no page of their own.

    autodoc's own ``:inherited-members:`` would add the hundreds that come from Lightning and torch.
    """
    ours = [base for base in cls.__mro__ if base.__module__.split(".")[0] == PACKAGE]
    names: dict[str, str] = {}
    for base in reversed([base for base in ours if base is cls or base not in documented]):
        for name, value in vars(base).items():
            target = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if not name.startswith("_") and inspect.isfunction(target) and target.__doc__:
                names[name] = "autoproperty" if isinstance(value, property) else "automethod"
    return list(names.items())


def shown_bases(cls: type, documented: set[object]) -> list[type]:
    """The bases that mean something to a reader: instead of one of ours without a page, its own."""
    bases: list[type] = []
    for base in cls.__bases__:
        ours = base.__module__.split(".")[0] == PACKAGE
        bases += shown_bases(base, documented) if ours and base not in documented else [base]
    return [base for base in dict.fromkeys(bases) if base not in (object, ABC)]


def contents(value: object) -> str:
    """What is in a constant: names, or the names of its functions and classes."""
    if not isinstance(value, (dict, tuple, list, set, frozenset)):
        return f"``{value!r}``"
    return ", ".join(f"``{getattr(item, '__name__', item)}``" for item in value)


def summary(value: object) -> str:
    """The first sentence or line of a docstring; of a constant, what is in it."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return contents(value)
    paragraph = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s(?=[A-Z])|:$", paragraph, maxsplit=1)[0]


def stub(path: str, documented: set[object]) -> str:
    """The page of one name, in reStructuredText."""
    value = resolve(path)
    module, _, name = path.rpartition(".")
    lines = [name, "=" * len(name), "", f".. py:currentmodule:: {module}", ""]
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        lines += [f".. {kind}:: {path}"]
        if shown_bases(value, documented):
            lines += ["   :show-inheritance:"]
        if issubclass(value, Enum):
            lines += ["   :members:", "   :undoc-members:"]
        lines += ["", *(f"   .. {directive}:: {path}.{member}" for member, directive in members(value, documented))]
    elif inspect.isroutine(value):
        lines += [f".. autofunction:: {path}"]
    else:
        lines += [f".. py:data:: {name}", "", f"   {contents(value)}"]
    return "\n".join(lines) + "\n"


def write_stubs(app: Sphinx) -> None:
    """Write the pages of all names, and remove those of names that are gone."""
    docs = Path(app.srcdir)
    folder = docs / GENERATED
    folder.mkdir(parents=True, exist_ok=True)
    documented_paths.cache_clear()
    paths = [path for _, listed in listings(docs) for path in listed]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        _log.warning("%s is listed twice below docs/api", path)
    for name in autotimm.__all__:
        if f"{PACKAGE}.{name}" not in paths:
            _log.warning("%s.%s is public, and no page below docs/api lists it", PACKAGE, name)
    documented = documented_classes(Path(app.srcdir))
    pages = {folder / f"{path}.rst": stub(path, documented) for path in paths}
    for page, text in pages.items():
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for page in set(folder.glob("*.rst")) - set(pages):
        page.unlink()


class PublicNames(SphinxDirective):
    """A table of names with their first lines, and their pages below it in the navigation."""

    required_arguments = 1
    has_content = True
    option_spec: typing.ClassVar = {"results-of": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Write it in reStructuredText, the language of the docstrings."""
        paths = names_of(self.arguments[0], list(self.content)) + results_of(self.options.get("results-of", ""))
        lines = ["````{eval-rst}", ".. list-table::", "   :widths: auto", ""]
        for path in paths:
            lines += [f"   * - :py:obj:`~{path}`", f"     - {summary(resolve(path))}"]
        lines += ["", ".. toctree::", "   :hidden:", "", *(f"   /{GENERATED}/{path}" for path in paths), "````"]
        return self.parse_text_to_nodes("\n".join(lines))


# ---- what autodoc shows


def show_bases(app: Sphinx, name: str, obj: type, options: object, bases: list[object]) -> None:
    """Answer autodoc's question for the bases of a class."""
    bases[:] = shown_bases(obj, documented_classes(Path(app.srcdir)))


def show_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Take the signature of a class from Python: where a base wraps ``__init__``, autodoc sees the wrapper's."""
    if not inspect.isclass(obj) or signature != "(*args, **kwargs)":
        return None
    found = inspect.signature(obj)
    return stringify_signature(found, show_annotation=False, show_return_annotation=False), returns


# ---- cross references in docstrings


def resolve_reference(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Node | None:
    """Lead a reference to wherever its object is documented; docstrings and annotations name it where it is defined.

    What another library has, or we have and is not public, stays text. A path of ours that leads nowhere is a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target, documented = node["reftarget"], documented_paths(Path(app.srcdir))
    candidates = [target, f"{node.get('py:module')}.{target}"]
    candidates += [path for path in documented.values() if path.rpartition(".")[2] == target]  # a bare name
    for candidate in candidates:
        if not candidate.startswith(f"{PACKAGE}."):
            continue
        try:
            value = resolve(candidate)
        except AttributeError:
            continue
        path = documented.get(id(value))
        if path is not None:
            domain = env.domains.python_domain
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", path, node, content)
        return content
    return None if target.startswith(f"{PACKAGE}.") else content


# ---- the command line


class Tables(SphinxDirective):
    """What the two directives of the command line share."""

    def option_table(self, program: str, rows: list[tuple[str, Option, object]]) -> nodes.table:
        """One row per option: its name, its default, what it takes, what it does."""
        cells = [(self.option_name(program, name), *self.about(option, value)) for name, option, value in rows]
        return table(["option", "default", "value", "what it does"], cells)

    def option_name(self, program: str, name: str) -> nodes.paragraph:
        """The option as it is typed; the search finds it by that name, too."""
        flag = f"--{name.replace('_', '-')}"
        target = nodes.make_id(f"{program}-{flag}")
        self.env.domains.standard_domain.add_program_option(f"autotimm {program}", flag, self.env.docname, target)
        return nodes.paragraph("", "", nodes.literal("", flag, ids=[target], classes=["option"]))

    def about(self, option: Option, default: object) -> tuple[nodes.Node, ...]:
        word = option.word(default)
        shown = str(word).lower() if isinstance(word, bool) else "" if word is None else str(word)
        value = nodes.paragraph("", "", nodes.literal("", shown)) if shown else nodes.paragraph()
        return value, nodes.paragraph("", option.must), nodes.paragraph("", option.help)

    def groups(
        self, program: str, of: dict[str, Option], default: dict[str, object]
    ) -> Iterator[tuple[str, nodes.table]]:
        for group in dict.fromkeys(option.group for option in of.values()):
            rows = [(name, option, default.get(name)) for name, option in of.items() if option.group == group]
            yield group, self.option_table(program, rows)


def table(head: list[str], rows: list[tuple[nodes.Node, ...]]) -> nodes.table:
    """A table of docutils."""
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    group += nodes.thead("", nodes.row("", *(nodes.entry("", nodes.paragraph("", word)) for word in head)))
    group += nodes.tbody("", *(nodes.row("", *(nodes.entry("", cell) for cell in row)) for row in rows))
    return nodes.table("", group)


class FitOptions(Tables):
    """The options of ``autotimm fit``, a table per group."""

    def run(self) -> list[nodes.Node]:
        """Read them from the declaration that the command line reads."""
        named = {name: option for name, option in options().items() if name != "path"}
        parts: list[nodes.Node] = []
        for group, rows in self.groups("fit", named, defaults()):
            parts += [nodes.rubric("", group), rows]
        return parts


class Verbs(Tables):
    """Every verb: its usage, arguments, options, examples and notes."""

    def run(self) -> list[nodes.Node]:
        """A section per verb, linkable as ``#verb``."""
        return [self.section(name) for name in VERBS]

    def section(self, name: str) -> nodes.section:
        verb = VERBS[name]
        section = nodes.section(ids=[nodes.make_id(name)], names=[name])
        self.state.document.note_explicit_target(section)
        section += nodes.title("", f"autotimm {name}")
        section += nodes.paragraph("", f"{verb.summary[0].upper()}{verb.summary[1:]}.")
        section += code(f"autotimm {verb.usage}{' [OPTIONS]' if verb.options else ''}", "text")
        if verb.positionals:
            rows = [
                (nodes.paragraph("", "", nodes.literal("", argument.usage)), nodes.paragraph("", argument.help))
                for argument in verb.positionals
            ]
            section += table(["argument", "what it is"], rows)
        # Those of `fit` are as many as all others together, and have a page of their own.
        here = {key: option for key, option in verb.options.items() if name != "fit" or key not in options()}
        for _, rows in self.groups(name, here, verb.defaults):
            section += rows
        if name == "fit":
            section += self.parse_text_to_nodes(
                "All [other options](../guide/cli.md#options-of-fit) are listed by subject."
            )
        section += code("\n".join(verb.examples), "bash")
        section += self.parse_text_to_nodes("\n\n".join(verb.notes))
        return section


def code(text: str, language: str) -> nodes.literal_block:
    """A block of code."""
    return nodes.literal_block(text, text, language=language)


# ---- pages of the repository that the site shows, too


def take_from_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill the pages of `BORROWED`, and lead links between them and the others to where they are on the site."""
    docs = Path(app.srcdir)
    root = docs.parent
    page = docs / f"{docname}.md"
    written = root / BORROWED[docname] if docname in BORROWED else page
    here = {(root / path).resolve(): docs / f"{name}.md" for name, path in BORROWED.items()}

    def moved(link: re.Match[str]) -> str:
        path, _, anchor = link[1].partition("#")
        target = (written.parent / path).resolve()
        if not target.exists() or (written == page and target not in here):
            return link[0]
        place = os.path.relpath(here.get(target, target), page.parent)
        return f"]({place}#{anchor})" if anchor else f"]({place})"

    if docname in BORROWED:
        source[0] = written.read_text(encoding="utf-8")
        app.env.note_dependency(written)
    if page.exists():
        source[0] = re.sub(r"\]\((?![a-z]+:|#)([^)\s]+)\)", moved, source[0])


def setup(app: Sphinx) -> dict[str, object]:
    """Register everything."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("fit-options", FitOptions)
    app.add_directive("verbs", Verbs)
    app.connect("builder-inited", write_stubs)
    app.connect("source-read", take_from_repository)
    app.connect("autodoc-process-bases", show_bases)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("missing-reference", resolve_reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
