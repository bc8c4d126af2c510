"""`python -m cirkd_ray` is the `cirkd` command."""

import sys

from cirkd_ray.cli import main

sys.exit(main())
