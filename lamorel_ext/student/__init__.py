"""The client's side of learning: rollouts, advantages, the RL student, the feedback edge and the training loop."""
