from pkgutil import extend_path

from lamorel_ext.processes.presence import announce
from lamorel_ext.processes.stopping import listen_early

# Before anything that takes long to import: an interruption there is one line, not a traceback.
listen_early()
announce()

# Modules of a package of the user's that has this name too are found behind ours.
__path__ = extend_path(__path__, __name__)
