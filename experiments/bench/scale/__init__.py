"""How a launch would go with more servers and clients than there are machines to try it."""
