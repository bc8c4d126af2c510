"""Everything that decides a run: recipes, overrides, validation."""

from cirkd_ray.config.load import from_tree, load_run, load_tree, parse
from cirkd_ray.config.spec import (
    ClusterSpec,
    DataSpec,
    DistillSpec,
    LossSpec,
    ModelSpec,
    OptimSpec,
    Published,
    RunSpec,
    TaskSpec,
    TeacherSpec,
    TrainSpec,
    WeightSchedule,
)

__all__ = [
    "ClusterSpec",
    "DataSpec",
    "DistillSpec",
    "LossSpec",
    "ModelSpec",
    "OptimSpec",
    "Published",
    "RunSpec",
    "TaskSpec",
    "TeacherSpec",
    "TrainSpec",
    "WeightSchedule",
    "from_tree",
    "load_run",
    "load_tree",
    "parse",
]
