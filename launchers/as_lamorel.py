"""Lamorel's launcher under its own name: ``python -m lamorel_launcher.launch``, where the alias is
on.
"""

from __future__ import annotations

import sys

from launchers.script import lamorel_launch

if __name__ == "__main__":
    sys.exit(lamorel_launch(sys.argv[1:]))
