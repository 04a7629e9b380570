"""Hand batch scripts to ``sbatch``, each to start when the one before it has ended, however it did:
a complete run does nothing, and a report names the runs that are missing.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.runs.entry import say
from lamorel_ext.errors import ConfigError, LamorelExtError

SBATCH = ("sbatch", "--parsable")


@dataclass(frozen=True)
class Job:
    """A batch script and what to call it for people."""

    name: str
    text: str

    def shell(self) -> str:
        """Lines of shell that submit it after the job in ``$id``, if there is one.

        On a federation the name of the cluster follows the number.
        """
        end = f"END OF {self.name.upper()}"
        after = '${id:+--dependency=afterany:"$id"}'
        return f"id=$({' '.join(SBATCH)} {after} << '{end}'\n{self.text}{end}\n)\nid=${{id%%;*}}"


def submit(jobs: Sequence[Job]) -> int:
    """Submit the jobs as a chain, and say which numbers they have.

    Raises:
        ConfigError: There is no ``sbatch`` here.
        LamorelExtError: It refused a script; says why.
    """
    if shutil.which(SBATCH[0]) is None:
        raise ConfigError("--submit: there is no sbatch on PATH; without it the script is printed")
    number = ""
    for job in jobs:
        after = [f"--dependency=afterany:{number}"] if number else []
        done = subprocess.run([*SBATCH, *after], input=job.text, capture_output=True, text=True)
        if done.returncode:
            raise LamorelExtError(f"sbatch refused the {job.name}: {done.stderr.strip()}")
        waits = f", after {number}" if number else ""
        # On a federation the name of the cluster follows the number.
        number = done.stdout.strip().split(";")[0]
        say(f"{job.name}: {number}{waits}")
    return 0
