"""Everything that decides a run: recipes, overrides, validation."""

from cirkd_ray.config.load import from_tree, load_run, load_tree, parse
from cirkd_ray.config.sections import DataSpec, DistillSpec, LossSpec, ModelSpec, TaskSpec, WeightSchedule
from cirkd_ray.config.spec import ClusterSpec, OptimSpec, Published, RunSpec, TeacherSpec, TrainSpec

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
