"""The embedded model's README, with its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping

_CARD = """\
# The embedded model

A T5 of {parameters:,} parameters with a tokenizer of its own, {vocabulary} pieces: one for each
word of BabyAI-Text's language, letters and bytes for everything else. It exists so that every part
of this project runs offline, in minutes, on one core. It has the form of flan-t5 (gated GELU,
output head of its own, no end-of-sequence token needed after a prompt) and none of its knowledge:
it was trained from random weights on texts about BabyAI levels and on nothing else. **No result
with it is a result with flan-t5**, or with any other language model.

Files: `config.json`, `model.safetensors` (float32), `tokenizer.json`, `tokenizer_config.json`.
`{command}` makes them again from nothing, with the same
bytes on the same machine{check}.

## What it was trained on

* {num_states:,} states of {num_levels} levels, walked by a distracted BabyAI bot, in English and in
  French. Seeds are below 1,000,000,000, where the evaluation's begin.
* {reading_steps:,} steps of reading: questions about where things are ("where is the red ball?" -
  "2 steps left and 3 steps forward") on a few sentences. Then {mixed_steps:,} steps of everything:
  questions on whole observations, spans to fill in, and after the prompts of Lamorel and GLAM an
  action or a subgoal sentence. The learning rate falls to zero at the last step, and the weights
  after the last step are shipped: no checkpoint is chosen.
* The actions are those of a *noisy bot*, to make a weak prior: {random_share:.0%} of its answers
  are uniformly random, and there are places that it misjudges (places of the target in the view; of
  the wall ahead while the target is out of sight): there it always gives one fixed action, mostly a
  wrong one. Who learns these labels perfectly succeeds in {label_success:.1%} of the episodes of
  GoToRedBallNoDists; that was fixed before training.
* No action was labelled in a mission that speaks of one of these: {held_out}. They are the task of
  the GoToRedBall levels and what the original keeps for its Mixed test level. What the model does
  there, it carries over from other colours and things.

## Figures

On `BabyAI-GoToRedBallNoDists-v0` before any further training, with Lamorel's prompt, actions
sampled from the softmax of the summed log-probabilities of the six action texts; exact, by dynamic
programming over all states (a uniformly random policy: success 0.265, return 0.155; the optimum: 1,
0.934). Entropy is in nats (ln 6 = 1.792 for a uniform choice). `action_mass` is the probability
that the model says one of the six texts at all.

```json
{figures}
```

{history}`reading` is the share of questions about unseen states that it answers word for word, of
{num_questions} drawn like those it was trained on.

## Limits

It knows the sentences of BabyAI-Text; other text is read letter by letter and means nothing to it.
It has seen the sentences that report feedback in a prompt, always without consequence. Texts of
more than 512 tokens are longer than anything it has seen.
"""

_CHECK = """\
; `--check` measures the shipped files and compares them with the figures
below"""
_HISTORY = """\
The order of the stages and the learning rate come from trial runs of a few hundred steps on
questions. The recipe is the first that was run in full. Two with less random labels (30 %) and
other misjudged places were run in full later, to see what the noise does: success 0.788 and 0.464
with an entropy of 1.45 and 1.47. They are not shipped.

"""


def write_card(facts: Mapping[str, object], figures: Mapping[str, float], shipped: bool) -> str:
    """Fill in the card.

    Args:
        facts: The numbers of the recipe, and the command.
        figures: What was measured.
        shipped: Whether it is the recipe of the model that comes with the project.
    """
    return _CARD.format(
        **facts,
        check=_CHECK if shipped else "",
        history=_HISTORY if shipped else "",
        figures=json.dumps(dict(figures), indent=2),
    )
