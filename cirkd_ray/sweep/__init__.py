"""Search spaces and what a sweep's folder holds; needs no Ray."""
