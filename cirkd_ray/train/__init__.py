"""One training loop for every method: pure torch, no Ray."""
