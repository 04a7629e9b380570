"""Lamorel's module names for one process and its children, where somebody asked for them.

``install`` puts a finder into ``sys.meta_path``. It answers to ``lamorel`` and
``lamorel_launcher``; and, where the real ones are not installed, to what Lamorel's and GLAM's
scripts import besides: ``gym``, ``babyai``, ``babyai_text``, and ``distutils``, which Python has no
longer. ``environment`` makes it so for a process that is yet to start: by a folder with a
``sitecustomize`` that lives as long as the launch.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from lamorel_ext.programs import HOME

ROOT = Path(__file__).resolve().parents[2]

_LAMOREL = {
    "lamorel": (
        "lamorel_ext",
        ("Caller", "lamorel_init", "BaseUpdater", "BaseModuleFunction", "BaseModelInitializer"),
    ),
    "lamorel.caller": ("lamorel_ext", ("Caller",)),
    "lamorel.server": ("lamorel_ext", ()),
    "lamorel.server.llms": ("lamorel_ext", ()),
    "lamorel.server.llms.updaters": ("lamorel_ext", ("BaseUpdater",)),
    "lamorel.server.llms.module_functions": ("lamorel_ext", ("BaseModuleFunction",)),
    "lamorel.server.llms.model_initializers": ("lamorel_ext", ("BaseModelInitializer",)),
    "lamorel_launcher": ("lamorel_ext", ()),
}
"""Modules by where their names come from."""

_FILES = {"lamorel_launcher.launch": HOME / "launchers" / "as_lamorel.py"}
"""Modules that are run, not only imported."""

_GAMES = """
    gym babyai babyai_text babyai.utils babyai.bot babyai.rl babyai.rl.utils
    babyai.rl.utils.supervised_losses babyai.paral_env_simple distutils distutils.dir_util
""".split()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the modules of a table of ``name: function that fills it``."""

    def __init__(self, makers: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self._makers = makers

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See ``importlib``."""
        if fullname in _FILES and fullname.partition(".")[0] in self._makers:
            return importlib.util.spec_from_file_location(fullname, _FILES[fullname])
        if fullname not in self._makers:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, self, is_package=True, origin="lamorel_ext.lamorel.alias"
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """See ``importlib``."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        self._makers[module.__name__](module)


def install() -> None:
    """Let this process find the names. The real Lamorel, if any, is not found from then on."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    # In front, because whoever calls this asked for ours.
    sys.meta_path.insert(0, _Finder({name: _copying(*source) for name, source in _LAMOREL.items()}))
    # Behind: what is really installed wins.
    sys.meta_path.append(_Finder(dict.fromkeys(_GAMES, _fill_game)))
    if sys.version_info < (3, 12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Scripts say distutils.dir_util after "import distutils", which others used to import.
            importlib.import_module("distutils.dir_util")


@contextmanager
def environment() -> Iterator[dict[str, str]]:
    """Environment variables under which a new Python process, and those that it starts, have the
    names.
    """
    with tempfile.TemporaryDirectory(prefix="lamorel_ext_alias_") as folder:
        (Path(folder) / "sitecustomize.py").write_text(_SITECUSTOMIZE, encoding="utf-8")
        before = os.environ.get("PYTHONPATH", "")
        yield {"PYTHONPATH": os.pathsep.join(part for part in (folder, str(ROOT), before) if part)}


_SITECUSTOMIZE = '''\
"""Made for one launch: Lamorel's names for this process."""
import importlib.machinery
import importlib.util
import os
import sys

from lamorel_ext.lamorel.alias import install

install()
here = os.path.dirname(os.path.abspath(__file__))
folders = [os.path.abspath(folder or ".") for folder in sys.path]
# Those behind this one: a launch within a launch has two such files, which must not call in turn.
behind = folders[folders.index(here) + 1 :]
spec = importlib.machinery.PathFinder.find_spec("sitecustomize", behind)
if spec is not None and spec.loader is not None:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
'''


def _copying(source: str, names: Sequence[str]) -> Callable[[ModuleType], None]:
    def fill(module: ModuleType) -> None:
        import logging

        for name in names:
            setattr(module, name, getattr(importlib.import_module(source), name))
        if module.__name__ == "lamorel":
            module.lamorel_logger = logging.getLogger("lamorel_logger")  # type: ignore[attr-defined]

    return fill


def _fill_game(module: ModuleType) -> None:
    from lamorel_ext.lamorel import games

    games.fill(module)
