"""Is this machine, or this cluster, fit for a run?"""
