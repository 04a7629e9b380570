"""The loop viewer: recorded rollouts as one page that plays them, step by step."""
