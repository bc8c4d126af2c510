"""Networks from elsewhere as teachers: a user's own factory, and torchvision's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import yaml
from torchvision.models import get_model, list_models, segmentation

from cirkd_ray.config.importing import imported
from cirkd_ray.errors import ConfigError, WeightsError, nearest
from cirkd_ray.models.external import ExternalModel, failing_as
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.weights.files import read_state


def load_module(spec: str, *, num_classes: int, where: str = "teacher.module") -> SegmentationModel:
    """The network that a user's factory returns, in eval mode.

    Args:
        spec: `package.module:factory`, optionally followed by arguments: `...:factory?name=value&other=value`
            (values are read as YAML). The factory returns a `SegmentationModel`, for example
            `ExternalModel(module, outputs={"logits": "@classifier", "feature": "@classifier.4:input"})`.
            Where it takes `num_classes`, it is given the data set's.
        num_classes: number of classes of the data set.
        where: path of the setting, for messages.

    Raises:
        ConfigError: there is no such module or factory, it fails, or returns something else.
    """
    path, _, query = spec.partition("?")
    if ":" not in path:
        raise ConfigError(f"{where}: {path!r} is not of the form package.module:factory")
    factory: Callable[..., Any] = imported(path, where, "factory")
    arguments = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{where}: {item!r} is not NAME=VALUE in {spec!r}")
        with failing_as(f"{where}: reading {item!r} as YAML"):
            arguments[key] = yaml.safe_load(value)
    with failing_as(f"{where}: {path}"):
        parameters = inspect.signature(factory).parameters
    if "num_classes" in parameters:
        arguments.setdefault("num_classes", num_classes)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in arguments:
        if key not in parameters and not open_ended:
            raise ConfigError(f"{where}: {path} takes no argument {key!r}{nearest(key, parameters)}")
    with failing_as(f"{where}: {path}"):
        model = factory(**arguments)
    if not isinstance(model, SegmentationModel):
        raise ConfigError(
            f"{where}: {path} returned {type(model).__name__}; wrap it: "
            "cirkd_ray.models.external.ExternalModel(module, outputs={'logits': ..., 'feature': ...})"
        )
    return model.eval()


def torchvision_model(
    name: str = "deeplabv3_resnet50", weights: str | None = None, num_classes: int = 21
) -> ExternalModel:
    """A segmentation network of torchvision: DeepLabV3, FCN or LR-ASPP.

    In a recipe it is `teacher.module`:
    `cirkd_ray.weights.external:torchvision_model?name=fcn_resnet50&weights=FILE`.
    torchvision's published weights score the 21 classes of VOC in its order.

    Args:
        name: torchvision's name, e.g. `deeplabv3_resnet101`.
        weights: a state dict of it (`.pth` or `.safetensors`); fresh weights without.
        num_classes: number of classes.

    Raises:
        ConfigError: torchvision has no such segmentation network.
        WeightsError: the file cannot be read or does not fit.
    """
    known = list_models(module=segmentation)
    if name not in known:
        raise ConfigError(f"{name}: torchvision has no such segmentation network{nearest(name, known)}")
    state = read_state(weights)[0] if weights is not None else {}
    lraspp = name.startswith("lraspp")
    aux = not lraspp and (not state or any(key.startswith("aux_") for key in state))
    options = {} if lraspp else {"aux_loss": aux}
    module = get_model(name, weights=None, weights_backbone=None, num_classes=num_classes, **options)
    if state:
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(f"{weights}: does not fit {name}:\n{error}") from None
    feature = "@classifier.high_classifier:input" if lraspp else "@classifier.4:input"
    outputs = {"logits": "@classifier", "feature": feature}
    if aux:
        outputs["aux"] = "@aux_classifier"
    if "resnet" in name:
        outputs |= {f"stage{i}": f"@backbone.layer{i}" for i in range(1, 5)}
    return ExternalModel(module, outputs=outputs, name=f"torchvision {name}")
