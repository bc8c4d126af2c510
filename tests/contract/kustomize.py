"""What `kubectl kustomize` makes of the folders in `jobs/kuberay`, as far as they use it.

Resources, components, a suffix of names and JSON 6902 patches by kind; anything else is an error, so that a
field which this does not know cannot pass unseen.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

KINDS = {
    "Kustomization": (
        "kustomize.config.k8s.io/v1beta1",
        {"resources", "components", "nameSuffix", "patches"},
    ),
    "Component": ("kustomize.config.k8s.io/v1alpha1", {"patches"}),
}


def render(folder: Path) -> list[dict[str, Any]]:
    """The resources of a folder."""
    return _applied(folder, "Kustomization", [])


def _applied(folder: Path, kind: str, resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tree = yaml.safe_load((folder / "kustomization.yaml").read_text())
    version, known = KINDS[kind]
    assert (tree.pop("kind"), tree.pop("apiVersion")) == (kind, version)
    assert set(tree) <= known, f"{folder}: {set(tree) - known}"
    for name in tree.get("resources", ()):
        place = (folder / name).resolve()
        resources += render(place) if place.is_dir() else list(yaml.safe_load_all(place.read_text()))
    for name in tree.get("components", ()):
        resources = _applied((folder / name).resolve(), "Component", resources)
    for patch in tree.get("patches", ()):
        assert set(patch) == {"target", "path"}
        assert set(patch["target"]) == {"kind"}
        hit = [each for each in resources if each["kind"] == patch["target"]["kind"]]
        assert hit, f"{folder}: {patch} meets nothing"
        for each in hit:
            operations = yaml.safe_load((folder / patch["path"]).read_text())
            each.update(jsonpatch.apply_patch(deepcopy(each), operations))
    for each in resources:
        each["metadata"]["name"] += tree.get("nameSuffix", "")
    return resources
