"""What a server process is: loading, scoring, heads, generation, updates, serving."""
