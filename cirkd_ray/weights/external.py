"""Networks from elsewhere as teachers: a description says where their outputs are, a trial run the rest."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torchvision.models import get_model, list_models, segmentation

from cirkd_ray.errors import ConfigError, UserError, WeightsError, first_line, nearest
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import IMAGENET, Preprocessing, SegmentationOutput
from cirkd_ray.weights.files import read_state

TRIAL_SIZE = (128, 192)
"""Height and width of the images of the trial run."""


class ExternalModel(SegmentationModel):
    """A module of any make with the outputs that this package works with.

    Where an output is, is said by one of

    - `KEY`: the entry of a dictionary (or attribute of an object) that the module returns, e.g. `out`. A
      whole number is the place in a tuple or list. Dots go deeper, e.g. `0.logits`. The empty text is the
      returned tensor itself.
    - `@MODULE`: the output of the submodule of that name, e.g. `@decode_head.conv_seg`, as it was when it
      left, also where a later layer works in place.
    - `@MODULE:input`: its first input, likewise.

    Logits should be at feature resolution, before they are resized to the image: take `@classifier`, not
    `out`. Channels, strides and the number of classes are measured by one forward of a random image.

    Args:
        module: the network, with its weights.
        outputs: place of `logits`, `feature`, and if there are such `aux` and further named maps.
        preprocessing: what the module expects of its input.
        align_corners: how the module resizes its logits to the image.
        name: what messages call it.

    Raises:
        ConfigError: an output is missing, is no N x C x h x w tensor, logits and aux differ in classes, or
            the module cannot take that image.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        outputs: Mapping[str, str],
        preprocessing: Preprocessing = IMAGENET,
        align_corners: bool = False,
        name: str = "external",
    ) -> None:
        for key in ("logits", "feature"):
            if key not in outputs:
                raise ConfigError(f"{name}: the description of its outputs lacks {key!r}")
        super().__init__(
            name=name, num_classes=0, settings={}, preprocessing=preprocessing, channels={}, strides={}
        )
        self.align_corners = align_corners
        self.module, self.outputs = module, dict(outputs)
        self._seen: dict[str, Tensor] = {}
        self._versions: dict[str, int] | None = None
        self._overwritten: set[str] = set()
        for key, place in self.outputs.items():
            if place.startswith("@"):
                self._hook(key, place[1:])
        self._measure()

    def _hook(self, key: str, place: str) -> None:
        """Keep what passes the submodule of that name."""
        path, _, side = place.partition(":")
        known = dict(self.module.named_modules())
        if path not in known or side not in ("", "input"):
            close = [name for name in known if name]
            hint = nearest(path, close) if path not in known else "; it is NAME or NAME:input"
            raise ConfigError(f"{self.name}: outputs.{key}: no submodule {place!r}{hint}")

        def keep(value: Any) -> None:
            if key in self._overwritten:
                value = value.clone()
            elif self._versions is not None and isinstance(value, Tensor):
                self._versions[key] = value._version
            self._seen[key] = value

        if side:  # before the module, which may work in place on its input
            known[path].register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
        else:
            known[path].register_forward_hook(lambda _, inputs, output: keep(output))

    def _measure(self) -> None:
        """Channels, strides and classes from one forward of a random image; what is overwritten later."""
        maps = self._trial()
        for key, value in maps.items():
            if not isinstance(value, Tensor) or value.ndim != 4:
                what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ConfigError(f"{self.name}: outputs.{key} is no N x C x h x w tensor but has {what}")
            self.strides[key] = max(1, round(TRIAL_SIZE[0] / value.shape[2]))
            if key not in ("logits", "aux"):
                self.channels[key] = value.shape[1]
        self.num_classes = maps["logits"].shape[1]
        if "aux" in maps and maps["aux"].shape[1] != self.num_classes:
            raise ConfigError(
                f"{self.name}: aux has {maps['aux'].shape[1]} classes but logits have {self.num_classes}"
            )

    def _trial(self) -> dict[str, Any]:
        """The outputs for a random image; tapped maps that a later layer changed in place are noted."""
        reference = next(self.module.parameters(), torch.zeros(()))
        training = self.module.training
        self.module.eval()
        size = " x ".join(map(str, TRIAL_SIZE))
        # Tensors of inference mode do not count their changes.
        with torch.inference_mode(False), torch.no_grad(), _failing_as(f"{self.name}: a {size} image"):
            images = torch.rand(1, 3, *TRIAL_SIZE, device=reference.device, dtype=reference.dtype)
            self._versions = {}
            maps = self._maps(images)
        self._overwritten = {key for key, count in self._versions.items() if maps[key]._version != count}
        self._versions = None
        self.module.train(training)
        return maps

    def _maps(self, images: Tensor) -> dict[str, Any]:
        """All described outputs of one forward."""
        self._seen.clear()
        returned = self.module(images)
        maps = {}
        for key, place in self.outputs.items():
            if not place.startswith("@"):
                maps[key] = _pick(returned, place, f"{self.name}: outputs.{key}")
            elif key in self._seen:
                maps[key] = self._seen[key]
            else:
                raise ConfigError(f"{self.name}: outputs.{key}: {place!r} takes no part in its forward")
        self._seen.clear()
        return maps

    def forward(self, images: Tensor) -> SegmentationOutput:
        """The described outputs of N x 3 x H x W preprocessed images."""
        maps = self._maps(images)
        tapped = {key: value for key, value in maps.items() if key in self.taps}
        return SegmentationOutput(
            logits=maps["logits"], aux=maps.get("aux"), feature=maps["feature"], stages=tapped or None
        )


def _pick(returned: Any, place: str, where: str) -> Any:
    """The part of a module's return value at `place`."""
    for part in place.split(".") if place else ():
        try:
            if isinstance(returned, Mapping):
                returned = returned[part]
            elif isinstance(returned, (tuple, list)) and not hasattr(returned, part):
                returned = returned[int(part)]
            else:
                returned = getattr(returned, part)
        except (KeyError, IndexError, ValueError, AttributeError):
            keys = list(returned) if isinstance(returned, Mapping) else []
            raise ConfigError(
                f"{where}: {type(returned).__name__} has no {part!r}{nearest(part, keys)}"
            ) from None
    return returned


@contextlib.contextmanager
def _failing_as(what: str) -> Iterator[None]:
    """Whatever goes wrong in the user's own code as a ConfigError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"{what}: {type(error).__name__}: {first_line(error)}") from error


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
    factory = _factory(path, where)
    arguments = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{where}: {item!r} is not NAME=VALUE in {spec!r}")
        with _failing_as(f"{where}: reading {item!r} as YAML"):
            arguments[key] = yaml.safe_load(value)
    with _failing_as(f"{where}: {path}"):
        parameters = inspect.signature(factory).parameters
    if "num_classes" in parameters:
        arguments.setdefault("num_classes", num_classes)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in arguments:
        if key not in parameters and not open_ended:
            raise ConfigError(f"{where}: {path} takes no argument {key!r}{nearest(key, parameters)}")
    with _failing_as(f"{where}: {path}"):
        model = factory(**arguments)
    if not isinstance(model, SegmentationModel):
        raise ConfigError(
            f"{where}: {path} returned {type(model).__name__}; wrap it: "
            "cirkd_ray.weights.external.ExternalModel(module, outputs={'logits': ..., 'feature': ...})"
        )
    return model.eval()


def _factory(path: str, where: str) -> Callable[..., Any]:
    """The callable called `package.module:name`."""
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"{where}: {path!r} is not of the form package.module:factory")
    with _failing_as(f"{where}: importing {module_name!r}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{where}: cannot import {module_name!r} ({error}); is it on PYTHONPATH?"
            ) from None
    factory = getattr(module, name, None)
    if not callable(factory):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"{where}: {module_name} has no factory {name!r}{nearest(name, public)}")
    return factory  # type: ignore[no-any-return]


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
