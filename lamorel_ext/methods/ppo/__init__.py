"""PPO of the LLM as policy: the baseline of Lamorel and GLAM (Carta et al. 2023)."""
