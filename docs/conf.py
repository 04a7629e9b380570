"""The site: ``make docs`` writes it into ``docs/_build``."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this tree's modules, whatever is installed

project = "lamorel-ext"
release = version = metadata.version("lamorel-ext")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples"]

html_theme = "furo"
html_title = "lamorel-ext"
html_show_copyright = False
html_static_path: list[str] = []

myst_heading_anchors = 3

napoleon_numpy_docstring = False
napoleon_use_ivar = True  # what a class lists as attributes is not described a second time
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # others' docstrings are in others' forms


def made_pages() -> dict[str, str]:
    """Texts of the pages that are made from the tree, by their names in ``docs/_generated``."""
    return {"tables.md": tables_page(), **reference_pages()}


def tables_page() -> str:
    """The figures and tables of every folder of ``docs/results``."""
    lines = ["# Figures and tables", "", "What the report wrote for each published experiment."]
    for folder in sorted(path for path in (HERE / "results").iterdir() if path.is_dir()):
        names = sorted(path.name for path in folder.iterdir())
        place = f"../results/{folder.name}"
        tables = [name for name in names if name.endswith((".csv", ".json"))]
        lines += ["", f"## {folder.name}", "", ", ".join(f"[{n}]({place}/{n})" for n in tables)]
        for name in names:
            if name.endswith((".png", ".svg")):
                lines += ["", f"![{folder.name}: {name}]({place}/{name})"]
    return "\n".join(lines) + "\n"


def reference_pages() -> dict[str, str]:
    """A page for each part of the package, with the docstrings of all its modules."""
    pages: dict[str, str] = {}
    package = HERE.parent / "lamorel_ext"
    for path in sorted(package.rglob("*.py"), key=lambda path: (path.parent, path.stem)):
        names = path.relative_to(package).with_suffix("").parts
        if names[0] in ("__init__", "__main__"):
            continue
        module = ".".join(["lamorel_ext", *names]).removesuffix(".__init__")
        page = f"reference_{names[0]}.rst"
        if page not in pages:
            title = f"lamorel_ext.{names[0]}"
            pages[page] = f"{title}\n{'=' * len(title)}\n"
        if module.count(".") > 1:
            pages[page] += f"\n{module}\n{'-' * len(module)}\n"
        pages[page] += f"\n.. automodule:: {module}\n   :members:\n   :show-inheritance:\n"
    return pages


def setup(app: Sphinx) -> None:
    """Write the pages that are made, where they changed, before Sphinx looks for pages."""
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    pages = made_pages()
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
