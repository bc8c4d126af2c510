"""Measurements that users can run too: `cirkd bench`."""
