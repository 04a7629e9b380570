"""Launch texts: argument lists for ``accelerate launch``, batch scripts for Slurm, and one function
that starts a command here.
"""

from lamorel_ext.processes.stopping import listen_early

# Before anything that takes long to import: an interruption there is one line, not a traceback.
listen_early()
