"""navix (Pignatelli et al. 2024, arXiv 2407.19396), minigrid in JAX, where it is installed (extra
``bench``): one room with doors, seen as numbers; it has no sentences and no missions in words.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ROOM = "Navix-GoToDoor-8x8-v0"


def make_rollout(num_envs: int, num_steps: int) -> Callable[[], None]:
    """A function that makes so many random steps of so many copies, as one compiled program: the
    fastest that navix has. Its first call compiles it.

    Raises:
        ImportError: navix is not installed.
    """
    import jax
    import navix

    env = navix.make(ROOM, observation_fn=navix.observations.symbolic_first_person)
    step = jax.vmap(env.step)
    actions = jax.numpy.asarray(
        np.random.default_rng(0).integers(len(env.action_set), size=(num_steps, num_envs))
    )
    start = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), num_envs))

    def advance(timestep: object, chosen: object) -> tuple[object, object]:
        after = step(timestep, chosen)
        # Everything that an agent reads, so that none of it is left out as unused.
        return after, (after.observation, after.reward, after.step_type)

    rollout = jax.jit(lambda timestep: jax.lax.scan(advance, timestep, actions))

    def run() -> None:
        jax.block_until_ready(rollout(start))

    return run
