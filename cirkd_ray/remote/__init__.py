"""What lies behind URLs: one way to reach it, and working copies of it on this machine."""
