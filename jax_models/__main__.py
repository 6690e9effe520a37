"""`python -m jax_models` prints every model with its size and its work."""

from __future__ import annotations

import jax_models

if __name__ == "__main__":
    print(jax_models.list_models())
