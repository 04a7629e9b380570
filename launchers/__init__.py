"""Launch texts: argument lists for ``accelerate launch``, batch scripts for Slurm, and one function that starts a command here."""
