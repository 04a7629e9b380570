"""``python -m experiments.report FOLDER``, see ``making``."""

import sys

from experiments.report.making import main

if __name__ == "__main__":
    sys.exit(main())
