"""Training: one step, one loop, and what they need. Nothing here knows Ray."""
