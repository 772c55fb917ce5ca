"""Pages that the site makes of other files, so that nothing is written down twice.

The reference has a page for every room of the package, the settings are read from the docstrings
of their sections, and the files beside the README appear as pages.
"""

import ast
import json
import re
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mvczigal_ref"
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "DEVIATIONS.md")
SETTINGS_MARK, RECIPES_MARK = "<!-- every setting -->", "<!-- every recipe -->"
_CODE = re.compile(r"`(\w+)`")
_TEX = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+)\$", re.DOTALL)
_OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)((?:#[^)]*)?)\)")


# -- settings ----------------------------------------------------------------------------


def _described() -> ModuleType:
    """Load the package's own piece by its path: the site is built where the package is not."""
    place = spec_from_file_location("setting_docs", PACKAGE / "config" / "setting_docs.py")
    module = module_from_spec(place)
    place.loader.exec_module(module)
    return module


def settings_tables() -> str:
    """Write one table per section."""
    lines = []
    for name, (about, fields) in _described().described_sections().items():
        lines += [f"## {name}", "", about, ""]
        lines += ["| setting | unit | default | values | meaning |", "| --- " * 5 + "|"]
        lines += [
            f"| `{name}.{field.name}` | {_cell(field.unit)} | `{field.default}` | "
            f"{_cell(field.values)} | {_cell(field.meaning)} |"
            for field in fields
        ]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("[", "&#91;").replace("]", "&#93;")


def recipes() -> dict[str, str]:
    """Read the first sentence of every recipe's docstring, by its name."""
    found = {}
    for path in sorted((PACKAGE / "recipes").glob("*.py")):
        if path.name == "__init__.py":
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                about = (ast.get_docstring(node) or "").partition("\n\n")[0]
                found[node.name] = " ".join(about.split())
    return found


def recipes_table() -> str:
    """Write one row per recipe."""
    rows = [f"| `{name}` | {_cell(about)} |" for name, about in sorted(recipes().items())]
    return "\n".join(["| recipe | what it is |", "| --- | --- |", *rows])


# -- the reference -------------------------------------------------------------------------


def rooms() -> dict[str, list[str]]:
    """List the modules of every room, and of the root as `root`, by their dotted names."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] in ("__init__", "__main__"):
            continue
        room = parts[0] if len(parts) > 1 else "root"
        found.setdefault(room, []).append(".".join(("mvczigal_ref", *parts)))
    return found


def room_page(room: str, modules: list[str]) -> str:
    """Write the page of a room: the room's docstring, then every module's reference."""
    path = PACKAGE / ("" if room == "root" else room) / "__init__.py"
    face = ast.parse(path.read_text("utf-8"))
    title = "mvczigal_ref" if room == "root" else f"mvczigal_ref.{room}"
    parts = [f"# {title}", ast.get_docstring(face) or ""]
    own = [n.name for n in face.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"]
    if own:  # what the room's face defines and does not import
        parts.append(f"::: {title}\n    options:\n      members: {own}")
    parts += [f"::: {module}" for module in modules]
    return "\n\n".join(parts) + "\n"


def public_names() -> dict[str, dict[str, str]]:
    """Read the table of the package's root: stage by stage, the module of each public name."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (table,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NAMES"
    )
    return {
        stage: {name: home for home, names in homes.items() for name in names.split()}
        for stage, homes in table.items()
    }


def names_page() -> str:
    """Write every public name in the order of the pipeline, each a link to its reference."""
    lines = ["# Public names", "", "`import mvczigal_ref` gives these, in the order of the data."]
    for stage, names in public_names().items():
        lines += ["", f"## {stage[0].upper()}{stage[1:]}", ""]
        lines += [f"- {_reference(name, names)}, of `{names[name]}`" for name in names]
    return "\n".join(lines) + "\n"


def _reference(name: str, homes: dict[str, str]) -> str:
    """Link a public name to its reference; what is none stays as it is."""
    if name not in homes:
        return f"`{name}`"
    return f"[`{name}`][mvczigal_ref.{homes[name]}.{name}]"


# -- notebooks ---------------------------------------------------------------------------------


def notebook_page(path: Path) -> str:
    """Write the cells of a notebook one below the other; a browser draws its equations."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{text}\n```" if is_code else _TEX.sub(_mathml, text))
    last = f"[Download {path.name}]({path.name}); it is kept without outputs."
    return "\n\n".join([*parts, last]) + "\n"


def _mathml(match: re.Match[str]) -> str:
    from latex2mathml.converter import convert  # which tests lack

    display = "block" if match["block"] else "inline"
    made: str = convert(" ".join((match["block"] or match["inline"]).split()), display=display)
    return made.replace("*", "&#42;").replace("_", "&#95;")


# -- MkDocs ----------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401 - of MkDocs, which tests lack
    """Add the pages that are made, and the files that pages show or link."""
    from mkdocs.structure.files import File

    for room, modules in rooms().items():
        page = room_page(room, modules)
        files.append(File.generated(config, f"api/{room}.md", content=page))
    files.append(File.generated(config, "names.md", content=names_page()))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
    for name in BESIDE:
        text = (ROOT / name).read_text("utf-8")
        files.append(File.generated(config, name.lower(), content=text))
    for name in sorted(linked()):
        files.append(File.generated(config, f"files/{name}", abs_src_path=str(ROOT / name)))
    return files


def linked() -> Iterator[str]:
    """Name the files outside `docs/` that its pages link, but for those that are pages."""
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    names = {match[1] for text in texts for match in _OUTSIDE.finditer(text)}
    yield from (name for name in names if name not in BESIDE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401 - of MkDocs
    """Put the settings in, and turn links that hold in the repository into the site's."""
    if page.file.src_uri == "changelog.md":  # its headings repeat, and it links nothing
        return markdown
    if page.file.src_uri == "notebooks/index.md":  # which links files in the repository
        markdown = markdown.replace(".ipynb)", ".md)")
    if page.file.src_uri in {name.lower() for name in BESIDE}:  # whose pages lie beside the others
        markdown = markdown.replace("](docs/", "](")
    if page.file.src_uri == "settings.md":
        markdown = markdown.replace(SETTINGS_MARK, settings_tables())
    if page.file.src_uri == "combinations.md":
        markdown = markdown.replace(RECIPES_MARK, recipes_table())
    if page.file.src_uri == "papers.md":
        homes = {name: home for names in public_names().values() for name, home in names.items()}
        markdown = _CODE.sub(lambda match: _reference(match[1], homes), markdown)
    return _OUTSIDE.sub(lambda m: f"]({_inside(m[1])}{m[2]})", markdown)


def _inside(name: str) -> str:
    return name.lower() if name in BESIDE else f"files/{name}"
