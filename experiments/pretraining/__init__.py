"""How the embedded model is made: its tokenizer, its texts, its training, its figures."""
