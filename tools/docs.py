"""Write the generated parts of the documentation from the docstrings.

    python tools/docs.py            writes them (`make docs`)
    python tools/docs.py --check    names the pages that are out of date and exits with 1

A page says where a part goes, and everything between the two comments is replaced:

    <!-- api: autotimm.seed_everything -->
    <!-- end -->

`api` takes the dotted path of a function or class; `options` takes a dataclass whose fields are
options, see src/autotimm/config/.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path

import autotimm

ROOT = Path(__file__).parents[1]
PART = re.compile(r"<!-- (api|options): (\S+) -->\n.*?<!-- end -->", re.DOTALL)
SECTIONS = ("Args", "Shape", "Attributes", "Returns", "Yields", "Raises", "Example", "Examples", "Note", "Notes")
WIDTH = 100


def find(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


# ---- from a docstring in Google style to Markdown


def inline(text: str) -> str:
    """Roles and double backquotes of reStructuredText become single backquotes."""
    text = re.sub(r":(?:\w+:)?\w+:`~?\.?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def table(lines: list[str]) -> list[str]:
    """A simple table: columns are where the line of ``=`` says."""
    spans = [match.span() for match in re.finditer(r"=+", lines[0])]
    ends = [*(start for start, _ in spans[1:]), None]
    rows = [
        [inline(line[start:end].strip()) for (start, _), end in zip(spans, ends, strict=True)]
        for line in lines
        if not line.startswith("==")
    ]
    text = ["| " + " | ".join(row) + " |" for row in rows]
    return [text[0], "|" + " --- |" * len(spans), *text[1:]]


def prose(lines: list[str]) -> list[str]:
    """Paragraphs, lists, tables, and code after ``::``."""
    out: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        end = at + 1
        if re.match(r"==+( +=+)*$", line):
            while end < len(lines) and lines[end].strip():
                end += 1
            out += table(lines[at:end])
        elif line.startswith("    ") and out and out[-1] == "":
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
                end += 1
            code = inspect.cleandoc("\n".join(lines[at:end]))
            out += ["```text", code, "```", ""]
        else:
            out.append(inline(re.sub(r"(\S)?::$", lambda match: f"{match[1]}:" if match[1] else "", line)))
        at = end
    return out


def items(lines: list[str]) -> list[str]:
    """``name: text`` with indented continuation lines becomes a list."""
    out = []
    for line in lines:
        if not line.strip():
            continue
        if indent_of(line) == 0:
            name, colon, text = line.partition(": ")
            out.append(f"- `{name.strip('`')}`: {inline(text)}" if colon else f"- {inline(line)}")
        else:
            out[-1] += " " + inline(line.strip())
    return out


def sections(doc: str) -> Iterator[tuple[str, list[str]]]:
    title, body = "", []
    for line in doc.splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            yield title, body
            title, body = line.rstrip(":"), []
        elif title and line and indent_of(line) == 0:  # a paragraph after a section
            yield title, body
            title, body = "", [line]
        else:
            body.append(line)
    yield title, body


def markdown(doc: str) -> str:
    out: list[str] = []
    for title, body in sections(doc):
        text = inspect.cleandoc("\n".join(["", *body])).splitlines()
        if title in ("Example", "Examples"):
            out += ["", "```pycon", *text, "```"]
        elif title in ("Args", "Attributes", "Raises"):
            out += ["", f"**{title.replace('Args', 'Arguments')}**", "", *items(text)]
        elif title:
            out += ["", f"**{title}**", "", *prose(text)]
        else:
            out += ["", *prose(text)]
    return "\n".join(out).strip()


# ---- signatures


def annotation(of: object) -> str:
    of = getattr(of, "__forward_arg__", of)
    return of if isinstance(of, str) else inspect.formatannotation(of)


def default(of: object) -> str:
    if inspect.isfunction(of):
        return f"<{of.__name__}>"
    return repr(of).replace("'", '"')


def parameter(of: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(of.kind, "")
    text = stars + of.name
    if of.annotation is not inspect.Parameter.empty:
        text += f": {annotation(of.annotation)}"
    if of.default is not inspect.Parameter.empty:
        text += f" = {default(of.default)}" if ":" in text else f"={default(of.default)}"
    return text


def signature(name: str, of: Callable[..., object]) -> str:
    found = inspect.signature(of)
    parts: list[str] = []
    keyword_only = False
    for one in found.parameters.values():
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        keyword_only |= one.kind is inspect.Parameter.VAR_POSITIONAL
        if one.name not in ("self", "cls"):
            parts.append(parameter(one))
    returns = found.return_annotation
    arrow = "" if returns is inspect.Signature.empty or inspect.isclass(of) else f" -> {annotation(returns)}"
    line = f"{name}({', '.join(parts)}){arrow}"
    return line if len(line) <= WIDTH else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){arrow}"


# ---- pages


def members(cls: type) -> Iterator[tuple[str, object]]:
    """What the class adds, with a docstring: by itself, or through bases of ours that are not public themselves."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("autotimm.")]
    own = [base for base in ours if base is cls or base.__name__ not in autotimm.__all__]
    for name, value in {name: value for base in reversed(own) for name, value in vars(base).items()}.items():
        target = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and (inspect.isfunction(target) and target.__doc__):
            yield name, value


def api(path: str) -> str:
    of = find(path)
    name = path.rpartition(".")[2]
    out = [f"## `{name}`", "", f"`from {path.rpartition('.')[0]} import {name}`", ""]
    if not (inspect.isclass(of) and issubclass(of, (BaseException, Enum))):
        out += ["```py", signature(name, of), "```", ""]
    out += [markdown(inspect.getdoc(of) or ""), ""]
    if inspect.isclass(of) and issubclass(of, Enum):
        out += [*(f"- `{name}.{member.name}`: `{default(member.value)}`" for member in of), ""]
    for member, value in members(of) if inspect.isclass(of) else ():
        if isinstance(value, property):
            out += [f"### `{name}.{member}`", "", markdown(inspect.getdoc(value) or ""), ""]
        else:
            bound = getattr(of, member)
            out += [f"### `{name}.{member}`", "", "```py", signature(member, bound), "```", ""]
            out += [markdown(inspect.getdoc(bound) or ""), ""]
    return "\n".join(out)


def options(path: str) -> str:
    """One table per group: the option, its default, what it does."""
    out: list[str] = []
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(find(path)):
        if option := field.metadata.get("option"):
            value = option.word(field.default)
            shown = str(value).lower() if isinstance(value, bool) else value
            name = f"--{field.name.replace('_', '-')}" if field.name != "path" else "PATH"
            row = f"| `{name}` | `{shown}` | {cell(option.must)} | {cell(option.help)} |"
            groups.setdefault(option.group, []).append(row)
    for group, rows in groups.items():
        out += [f"### {group}", "", "| option | default | value | what it does |"]
        out += ["| --- | --- | --- | --- |", *rows, ""]
    return "\n".join(out)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def filled(text: str) -> str:
    def part(match: re.Match[str]) -> str:
        write = {"api": api, "options": options}[match[1]]
        body = re.sub(r"\n{3,}", "\n\n", write(match[2])).strip()
        return f"<!-- {match[1]}: {match[2]} -->\n\n{body}\n\n<!-- end -->"

    return PART.sub(part, text)


def stale(write: bool) -> list[str]:
    """The pages whose generated parts are out of date; they are brought up to date if ``write``."""
    found = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            found.append(page.relative_to(ROOT).as_posix())
            if write:
                page.write_text(after, encoding="utf-8")
    return found


if __name__ == "__main__":
    check = "--check" in sys.argv
    pages = stale(write=not check)
    for name in pages:
        print(f"{'out of date' if check else 'written'}: {name}")
    if check and pages:
        sys.exit("Run `make docs`.")
