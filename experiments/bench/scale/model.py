"""A model of a launch: what each process does in a rollout and its update, from costs that were
measured, and what the others wait for. Pure arithmetic.

Clients step their copies of the environment, then ask; servers answer their shards; clients
exchange what came of it; servers learn together. These follow one another, as they do without
``run.pipeline``, so that a rollout takes the sum of its parts, each as long as its busiest process.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Costs:
    """CPU seconds of one process, measured; ``latency`` in seconds on the clock.

    Attributes:
        env_step: One step of one copy, with its text and prompt.
        client_call: A client's request to one server and its answer, but for its prompts.
        client_prompt: One prompt of such a request.
        client_sample: One sample of an update on its way.
        merge_prompt: One prompt of the whole batch, put back in order and exchanged among clients.
        prompt_tokens: Tokens of a prompt, in the mean.
        server_call: A request at a server, but for its prompts.
        server_token: One token of a distinct prompt scored, with its part of the candidates.
        update_step: An optimiser step, whatever the batch: Adam on every weight.
        update_token: One token of a sample's prompt, forwards and backwards.
        ring_share: The sum of the gradients over servers, for each time that all of them pass
            through a server.
        parameters: Numbers in a gradient, each of 4 bytes.
        latency: A message there and back.
    """

    env_step: float
    client_call: float
    client_prompt: float
    client_sample: float
    merge_prompt: float
    prompt_tokens: float
    server_call: float
    server_token: float
    update_step: float
    update_token: float
    ring_share: float
    parameters: float
    latency: float


@dataclass(frozen=True)
class Work:
    """A rollout and its update.

    Attributes:
        copies: Of the environment, at each client.
        steps: Of each copy.
        optimiser_steps: After each rollout, over all samples together.
    """

    copies: int = 16
    steps: int = 32
    optimiser_steps: int = 4


@dataclass(frozen=True)
class Machines:
    """Where it runs.

    Attributes:
        cores: Of all machines together; 0 means one for each process.
        bytes_per_s: Of a machine's network, which sums of gradients pass.
    """

    cores: int = 0
    bytes_per_s: float = 1.25e9


@dataclass(frozen=True)
class Parts:
    """Seconds of one rollout by what they go to.

    Attributes:
        environment: Steps of the environment.
        client: Requests and answers at a client, and the way there and back.
        merge: Exchange among clients, which all hold the whole rollout.
        score: Reading prompts.
        gradient: Forwards and backwards over the samples.
        step: Adam, the same on every server.
        sum: Gradients summed over the servers.
    """

    environment: float
    client: float
    merge: float
    score: float
    gradient: float
    step: float
    sum: float

    @property
    def seconds(self) -> float:
        """Of the whole rollout."""
        return math.fsum(asdict(self).values())

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        parts: dict[str, float] = asdict(self)
        return max(parts, key=lambda name: parts[name])


def rings(servers: int) -> float:
    """How many times all gradients pass through a server in a sum over ``servers``."""
    return 2 * (servers - 1) / servers


def score_seconds(costs: Costs, tokens: float) -> float:
    """CPU seconds of a server for a request of distinct prompts with so many tokens together."""
    return costs.server_call + tokens * costs.server_token


def update_seconds(costs: Costs, tokens: float, servers: int) -> tuple[float, float, float]:
    """CPU seconds of a server for an optimiser step: so many tokens of its samples, Adam, the
    sum over the servers.
    """
    return tokens * costs.update_token, costs.update_step, costs.ring_share * rings(servers)


def predict(
    costs: Costs, work: Work, servers: int, clients: int, machines: Machines | None = None
) -> Parts:
    """Seconds of a rollout of all clients together."""
    where = machines or Machines()
    batch = clients * work.copies
    asked = min(servers, batch)
    calls = math.ceil(asked / clients)
    samples = batch * work.steps / work.optimiser_steps
    prompts, own_samples = math.ceil(batch / asked), math.ceil(samples / servers)
    score = score_seconds(costs, prompts * costs.prompt_tokens)
    gradient, step, summed = update_seconds(costs, own_samples * costs.prompt_tokens, servers)
    if servers > 1:
        wire = rings(servers) * 4 * costs.parameters / where.bytes_per_s
        summed = max(summed, wire) + 2 * (servers - 1) * costs.latency

    def shared(busiest: float, processes: int) -> float:
        """Seconds for so many equally busy processes; with too few cores they take turns."""
        return busiest * max(1.0, processes / where.cores) if where.cores else busiest

    asking = calls * costs.client_call + batch / min(clients, asked) * costs.client_prompt
    teaching = servers * costs.client_call + batch * work.steps * costs.client_sample
    exchange = costs.merge_prompt * batch + costs.latency * math.ceil(math.log2(clients))
    return Parts(
        environment=work.steps * shared(work.copies * costs.env_step, clients),
        client=work.steps * (shared(asking, clients) + costs.latency) + teaching,
        merge=work.steps * shared(exchange, clients) if clients > 1 else 0.0,
        score=work.steps * shared(score, asked),
        gradient=work.optimiser_steps * shared(gradient, servers),
        step=work.optimiser_steps * shared(step, servers),
        sum=work.optimiser_steps * shared(summed, servers),
    )


def throughput(parts: Parts, work: Work, clients: int) -> float:
    """Environment steps in a second."""
    return clients * work.copies * work.steps / parts.seconds
