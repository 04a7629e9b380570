"""The ways in which the LLM and the agent teach each other, one folder each: its options, its half
on the client, its half on the servers.
"""
