"""Processes of a launch: who they are, who started them, how they end, and the secret they share.

Nothing here imports torch: it is at work before torch is.
"""
