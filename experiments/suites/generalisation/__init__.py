"""What a trained policy is tested under, how it does there, and the page about it; ``python -m
experiments.generalise`` puts them together.
"""
