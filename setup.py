"""Where the folders of the programs go, and where a wheel is built; all else is in setup.cfg.

In a wheel they lie within lamorel_ext, see lamorel_ext/programs.py. In a checkout, and installed
from it with ``-e``, they are where they are.
"""

import atexit
import shutil
import sys
import tempfile

from setuptools import find_namespace_packages, setup

FOLDERS = ("experiments", "launchers", "configs")
within = "" if "editable_wheel" in sys.argv else "lamorel_ext._top."
programs = find_namespace_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
options = {}
if "bdist_wheel" in sys.argv:
    # In ./build, a wheel would take what an earlier build has left, and fail beside another build.
    place = tempfile.mkdtemp(prefix="lamorel_ext_wheel_")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    options = {"build": {"build_base": place}, "egg_info": {"egg_base": place}}
setup(
    packages=[
        *find_namespace_packages(include=["lamorel_ext", "lamorel_ext.*"]),
        *(within + name for name in programs),
    ],
    package_dir={within + folder: folder for folder in FOLDERS},
    options=options,
)
