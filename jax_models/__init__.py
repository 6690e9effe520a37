"""Image models by name, as Flax NNX modules.

Every name means the published network: `create_model("tinyvit_11m", 1000)`
takes timm's weights through `import_torch` and gives timm's logits.
"""

from jax_models.embedding import EmbeddingModel
from jax_models.model import ImageModel
from jax_models.registry import (
    create_model,
    encoder_name,
    list_generation_models,
    list_models,
    list_segmentation_models,
)
from jax_models.segmentation import SegmentationModel
from jax_models.torch.conversion import export_torch, import_torch
from jax_models.velocity import VelocityModel

__all__ = [
    "EmbeddingModel",
    "ImageModel",
    "SegmentationModel",
    "VelocityModel",
    "create_model",
    "encoder_name",
    "export_torch",
    "import_torch",
    "list_generation_models",
    "list_models",
    "list_segmentation_models",
]
