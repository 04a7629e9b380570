"""The process of a worker: steps its share of the copies of a level when it is told to. Started by
``worker_pool``; imports no torch. Both talk in JSON: nothing that arrives can run code.
"""

from __future__ import annotations

import json
import signal
import traceback
from multiprocessing.connection import Connection

from lamorel_ext.envs.babyai.level_copies import Share
from lamorel_ext.processes.stopping import HEARD


def serve(handle: int) -> None:
    """Answer commands until the connection closes, or until one fails: then the traceback is the
    last answer.

    Args:
        handle: File descriptor of the connection to the process that started this one.
    """
    # A terminal, or a batch system, signals every process; the one that started us decides.
    for signum in HEARD:
        signal.signal(signum, signal.SIG_IGN)
    with Connection(handle) as connection:
        try:
            _answer_all(connection)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # whoever asked is gone
        except Exception as error:  # whatever it is, the asking process must hear of it
            failure = {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": traceback.format_exc(),
            }
            connection.send_bytes(json.dumps({"error": failure}).encode())


def _answer_all(connection: Connection) -> None:
    share = Share(**json.loads(connection.recv_bytes()))
    connection.send_bytes(b"{}")
    while True:
        answer = share.answer(json.loads(connection.recv_bytes()))
        connection.send_bytes(json.dumps(answer).encode())
