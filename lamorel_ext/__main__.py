"""``python -m lamorel_ext PROGRAM ...``: see ``lamorel_ext.programs``."""

import sys

from lamorel_ext.programs import from_module

if __name__ == "__main__":
    sys.exit(from_module(sys.argv))
