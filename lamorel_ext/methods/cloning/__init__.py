"""The expert teaches the LLM: behavioural cloning (a comparison of Carta et al. 2023, GLAM)."""
