"""Where the folders of the programs go; all else is in setup.cfg.

In a wheel they lie within lamorel_ext, see lamorel_ext/programs.py. In a checkout, and installed
from it with ``-e``, they are where they are.
"""

import sys

from setuptools import find_namespace_packages, setup

FOLDERS = ("experiments", "launchers", "configs")
within = "" if "editable_wheel" in sys.argv else "lamorel_ext._top."
programs = find_namespace_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
setup(
    packages=[
        *find_namespace_packages(include=["lamorel_ext", "lamorel_ext.*"]),
        *(within + name for name in programs),
    ],
    package_dir={within + folder: folder for folder in FOLDERS},
)
