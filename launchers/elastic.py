"""``accelerate launch`` that reports a failed rank in one line.

A rank that fails has said why; PyTorch's elastic agent adds its own traceback, which buries that. The exit status is the failed rank's.
"""

from __future__ import annotations

import logging
import sys


def main() -> int:
    """Run accelerate's launcher on this process's arguments."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args())
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"launch: rank {rank} ended with exit status {status}; the other ranks were stopped", file=sys.stderr)
        return status
    except SignalException as error:
        print(f"launch: stopped by {error.sigval.name}; the same command goes on from the last checkpoint", file=sys.stderr)
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
