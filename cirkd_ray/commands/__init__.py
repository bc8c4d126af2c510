"""One module a subcommand of `cirkd`; see `cirkd_ray.cli`."""
