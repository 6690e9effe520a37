"""Which models the trees of a booster look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stacking.boosters import Fit, load_trees
from stacking.meta_learners import Boosted
from stacking.stack_model import StackModel

AGREEMENT = "how far they agree"


def of_stack(
    stack: StackModel, models: Sequence[str], num_classes: int
) -> dict[str, dict[str, float]]:
    """Returns `importance_of_models` of each booster in a stack, by its name.

    Args:
      stack: fitted.
      models: names of its members.
      num_classes: of the stack.
    """
    return {
        name: importance_of_models(learner.model.fits, models, num_classes)
        for name, learner in stack.meta_learners.items()
        if isinstance(learner, Boosted)
    }


def importance_of_models(
    fits: Sequence[Fit], models: Sequence[str], num_classes: int
) -> dict[str, float]:
    """Returns the share of each model in what the trees split by.

    By each library's own measure (CatBoost's change of predictions, LightGBM's
    gain), summed over the features of a model (`features.meta_features`) and
    averaged over the fits.

    Args:
      fits: of one booster.
      models: their names, in the order of the features.
      num_classes: of the stack.

    Returns:
      {model, or AGREEMENT: share}, which sum to one; {} without a split.
    """
    columns = np.arange(len(models) * num_classes) // num_classes
    owner = np.concatenate(
        [columns, np.tile(np.arange(len(models)), 3), [len(models)] * 2]
    )
    total = np.zeros(len(models) + 1)
    for fit in fits:
        if not fit.model:  # There was but one class to learn.
            continue
        trees = load_trees(fit.kind, fit.model)
        if fit.kind == "catboost":
            found = np.asarray(trees.get_feature_importance())
        else:
            found = trees.feature_importance("gain")
        if found.sum() > 0:
            total += np.bincount(owner, found, len(total)) / found.sum()
    if not total.any():
        return {}
    shares = (total / total.sum()).tolist()
    return dict(zip((*models, AGREEMENT), shares, strict=True))
