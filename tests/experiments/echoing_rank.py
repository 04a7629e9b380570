"""A launch for a test: its client answers each line with the line and what it was told to do."""

import json
import os
import sys
from pathlib import Path


def main(path: Path) -> None:
    """Be the client, until it is to end; a server has nothing to do."""
    for line in sys.stdin if os.environ["RANK"] == "0" else ():
        if line == "end\n":
            sys.exit("rank 0 has had enough")
        print("a library speaks")
        print(json.dumps([line.strip(), json.loads(path.read_text())]), flush=True)
