"""Who acts: the RL student with its teachers, the LLM as policy, and the agents to compare with."""
