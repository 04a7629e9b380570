"""BabyAI-Text on minigrid: levels, sentences, batches of environments."""
