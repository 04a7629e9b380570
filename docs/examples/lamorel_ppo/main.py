"""PPO on a game of one's own with Lamorel's interface: turn left where the ball is red, else
right.
"""

import hydra
import torch
from torch.distributions import Categorical

from lamorel_ext import BaseModuleFunction, BaseUpdater, Caller, lamorel_init
from lamorel_ext.llm.module_functions import ValueHead

lamorel_init()
ACTIONS = ["turn left", "turn right"]


class Scores(BaseModuleFunction):
    """What ``score`` gives, as a module function, so that gradients can flow through it."""

    def initialize(self):
        pass

    def forward(self, forward_outputs, minibatch, tokenized_contexts, **kwargs):
        tokens, real = (
            minibatch["decoder_input_ids"][:, 1:],
            minibatch["decoder_attention_mask"][:, 1:],
        )
        logs = (
            forward_outputs["logits"][:, :-1]
            .log_softmax(-1)
            .gather(2, tokens[:, :, None])
            .squeeze(-1)
        )
        return (logs * real).sum(-1)


class PPOUpdater(BaseUpdater):
    def perform_update(self, contexts, candidates, _current_batch_ids, **kwargs):
        if not hasattr(self, "optimizer"):
            self.optimizer = torch.optim.Adam(self._llm_module.parameters(), lr=kwargs["lr"])
        actions, old, rewards = (
            kwargs[key][_current_batch_ids] for key in ("actions", "log_probs", "rewards")
        )
        for _ in range(kwargs["epochs"]):
            rows = self._llm_module(
                ["score", "value"], contexts=contexts, candidates=candidates, require_grad=True
            )
            values = torch.stack([row["value"][0, 0] for row in rows])
            advantages = rewards - values.detach()
            new = Categorical(logits=torch.stack([row["score"] for row in rows])).log_prob(actions)
            ratio = torch.exp(new - old)
            policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
            loss = policy + 0.5 * (values - rewards).square().mean()
            self.optimizer.zero_grad()
            loss.backward()  # gradients are averaged over the servers here
            torch.nn.utils.clip_grad_norm_(self._llm_module.parameters(), 1.0)
            self.optimizer.step()
        return {"loss": loss.item(), "samples": len(contexts)}


@hydra.main(config_path=".", config_name="config", version_base=None)
def main(config):
    caller = Caller(
        config.lamorel_args,
        custom_updater=PPOUpdater(),
        custom_module_functions={"score": Scores(), "value": ValueHead(32)},
    )
    args = config.rl_script_args
    torch.manual_seed(args.seed)
    for update in range(args.updates):
        red = torch.rand(args.batch_size) < 0.5
        prompts = [f"You see a {'red' if one else 'green'} ball" for one in red]
        policy = Categorical(logits=torch.stack(caller.score(prompts, [ACTIONS] * len(prompts))))
        actions = policy.sample()
        rewards = ((actions == 0) == red).float()
        results = caller.update(
            prompts,
            [ACTIONS] * len(prompts),
            actions=actions,
            rewards=rewards,
            log_probs=policy.log_prob(actions),
            lr=args.lr,
            epochs=args.epochs,
        )
        print(
            f"update {update}: reward {rewards.mean():.3f} loss {results[0]['loss']:.3f}",
            flush=True,
        )
    caller.close()


if __name__ == "__main__":
    main()
