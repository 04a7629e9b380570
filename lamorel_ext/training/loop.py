"""The training loop: collect, give feedback, update, evaluate, record, save."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lamorel_ext.config import Config
from lamorel_ext.envs.babyai.expert import expert_shortfall
from lamorel_ext.errors import ConfigError, EnvWorkerError, LamorelExtError, RpcError
from lamorel_ext.portable import hold_portable
from lamorel_ext.processes import stopping
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.clients import Clients
from lamorel_ext.training.building import EnvFactory, make_env, needs_experts
from lamorel_ext.training.recorder import Recorder
from lamorel_ext.training.run import TrainingRun
from lamorel_ext.training.shared import ONE_CLIENT, agreed_stop
from lamorel_ext.types import LlmClient

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        env_steps: Environment steps, over all environments.
        last_row: The last row of the learning curve; None where something was not measured.
    """

    env_steps: int
    last_row: Mapping[str, float | None]


def train(
    config: Config,
    llm: LlmClient | None,
    recorder: Recorder,
    env_factory: EnvFactory = make_env,
    clients: Clients = ONE_CLIENT,
) -> Summary:
    """Train one arm with one seed, from the recorder's last checkpoint where it has one.

    Everything follows from ``config.run.seed``: two runs give the same curve, and so does one that
    was stopped and resumed.

    Args:
        config: The run.
        llm: The LLM's servers; None in an arm without an LLM.
        recorder: Keeps rows and checkpoints.
        env_factory: Makes the environments.
        clients: Those that train the run together, each of which calls this; with several of them
            ``llm`` is a ``SharedClient`` and ``recorder`` a ``LedRecorder``.

    Raises:
        Stopped: This process was asked to end; between two rollouts a checkpoint is whole, so there
            it was made.
        LamorelExtError: A part of the run's own called ``sys.exit``.
        ConfigError: ``run.portable`` is set, but this process was not started so; or ``llm`` knows
            of other clients.
    """
    if isinstance(llm, Caller) and llm.clients is not None:
        raise ConfigError(
            "lamorel_args.distributed_setup_args.n_rl_processes: several clients train a run with a"
            " SharedClient of their caller, a LedRecorder and clients=Clients(caller.clients); see"
            " experiments/train.py"
        )
    if config.run.portable:
        hold_portable()
    with (
        TrainingRun(config, llm, env_factory, clients) as run,
        stopping.deferring(_tell),
        _ending_together(),
    ):
        if clients.rank == 0 and needs_experts(config, held_out=False):
            stages = (stage.level for stage in config.env.curriculum)
            for level in dict.fromkeys([config.env.own.target or config.env.level, *stages]):
                if shortfall := expert_shortfall(level):
                    log.warning("%s", shortfall)
        checkpoint = recorder.resume()
        run.start(checkpoint)
        if checkpoint is None:
            recorder.write(run.evaluate())
        while not run.finished:
            trace = run.rollout()
            if trace is not None:
                recorder.trace(trace)
            if run.evaluation_due:
                recorder.write(run.evaluate())
            if run.checkpoint_due:
                run.save(recorder)
            recorder.progress(run.progress.env_steps, config.budget, run.counters())
            if sample := run.system_sample():
                recorder.system(sample)
            stop = agreed_stop(clients)
            if stop is not None and not run.finished:
                _stop(run, recorder, stop)
        return Summary(run.progress.env_steps, run.progress.last_row)


@contextmanager
def _ending_together() -> Iterator[None]:
    """Servers and environment workers that were asked to end as well, and went first, are no
    failure of this run; an exit in the middle of it is one, whatever its status.
    """
    try:
        yield
    except SystemExit as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise LamorelExtError(
            f"the run is not over, but {frame.filename}, line {frame.lineno}, ended the process:"
            f" SystemExit({error.code!r})"
        ) from error
    except (RpcError, EnvWorkerError) as error:
        if stopping.asked() is None:
            raise
        first = str(error).splitlines()[0]
        raise stopping.leave(
            f"{first}; the last checkpoint stands, and the same command goes on from it"
        ) from error


def _stop(run: TrainingRun, recorder: Recorder, stop: stopping.Stop) -> None:
    """Save, unless this rollout's checkpoint has just been made, and end."""
    with stopping.finishing():
        if not run.checkpoint_due:
            run.save(recorder)
        step = run.progress.env_steps
        raise stopping.leave(
            f"saved at step {step} of {run.config.budget}; the same command goes on from there",
            stop,
        )


def _tell(stop: stopping.Stop) -> None:
    log.warning(
        "%s: saving when this rollout is over, within %g s; a second signal ends at once",
        stop.why,
        stop.patience_s,
    )
