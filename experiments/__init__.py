from lamorel_ext.processes.presence import announce
from lamorel_ext.processes.stopping import listen_early

# Before anything that takes long to import: an interruption there is one line, not a traceback.
listen_early()
announce()
