"""Lamorel's launcher under its own name: ``python -m lamorel_launcher.launch``, where the alias is
on.
"""

from __future__ import annotations

import sys

from lamorel_ext.programs import put_home_first

if __name__ == "__main__":
    put_home_first()
    from launchers.script import lamorel_launch

    sys.exit(lamorel_launch(sys.argv[1:]))
