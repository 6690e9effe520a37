"""Fields of the masked autoencoder, for the recipes that pretrain with it."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.fields import Field, at_least, between, declare


def fields() -> ConfigDict:
    """Returns how a masked autoencoder is built (jax_models/mae.py).

    He et al. 2021; the decoder is the reference recipe's.
    """
    return declare(
        "mae",
        mask_ratio=Field(0.75, between(0, 1)),
        decoder_width=Field(512, at_least(4)),
        decoder_depth=Field(4, at_least(1)),
        decoder_heads=Field(8, at_least(1)),
        decoder_mlp_width=Field(2048, at_least(1)),
        # Each patch's pixels brought to mean 0 and variance 1 first.
        normalize_targets=False,
    )
