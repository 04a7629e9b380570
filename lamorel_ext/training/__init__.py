"""The client's training run: collect, give feedback, learn, evaluate, record, resume."""
