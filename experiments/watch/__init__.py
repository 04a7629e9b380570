"""See runs go, from their folders alone."""
