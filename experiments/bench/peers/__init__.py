"""What the benchmarks are held against: the ways of Lamorel, minigrid and transformers."""
