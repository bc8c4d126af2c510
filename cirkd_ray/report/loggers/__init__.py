"""What keeps the figures of runs, a file each: `train.loggers` names them."""

from cirkd_ray.report.loggers.base import LOGGERS, Logger
from cirkd_ray.report.loggers.choose import chosen_loggers, require_loggers

__all__ = ["LOGGERS", "Logger", "chosen_loggers", "require_loggers"]
