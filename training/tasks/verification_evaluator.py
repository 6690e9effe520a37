"""From embeddings of the validation pictures to the scores of their pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from input_pipeline.transforms import mixing
from metrics import verification
from run_folder.pair_files import PairList
from training.tasks import similarity

# Folds of identities: a pair of two is answered by the pairs in the others.
FOLDS = 5
# With fewer identities, hardly any pairs are left to fit to.
FEWEST_TO_DIVIDE = 20


@dataclasses.dataclass(frozen=True, eq=False)
class ValidationPairs:
    """The fixed list of pairs that every evaluation scores.

    Attributes:
      rows: int [N], the rows that validate, ascending.
      pairs: of rows of the labelled examples.
      identities: int [N], of `rows`.
      judges_forgeries: whether the model has a head for them.
    """

    rows: np.ndarray
    pairs: PairList
    identities: np.ndarray
    judges_forgeries: bool

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where both pictures of each pair are among `rows`: int [P] each."""
        return (
            np.searchsorted(self.rows, self.pairs.first),
            np.searchsorted(self.rows, self.pairs.second),
        )

    @property
    def positive(self) -> np.ndarray:
        """Which pairs are positive, bool [P]."""
        return self.pairs.kind == verification.POSITIVE

    def without(self, bad: np.ndarray) -> ValidationPairs:
        """Leaves out the pairs of pictures that cannot be read: bool [N]."""
        first, second = self.places
        kept = ~(bad[first] | bad[second])
        return dataclasses.replace(self, pairs=self.pairs.take(kept))

    def similarity(
        self, cosine: np.ndarray, log_real: np.ndarray
    ) -> np.ndarray:
        """Returns what a pair of unseen identities would get, float64 [P].

        Of a few identities alone no fold can be missed: then all are fitted.
        """
        known, number = np.unique(self.identities, return_inverse=True)
        if len(known) < FEWEST_TO_DIVIDE:
            how = similarity.fit(cosine, log_real, self.positive)
            return how(cosine, log_real)
        folds = np.stack([number[place] % FOLDS for place in self.places], 1)
        return similarity.cross_fitted(cosine, log_real, self.positive, folds)

    def compared(
        self, embedding: np.ndarray, real_logit: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns cosine [P] and log_real [P] (or [0]) of the pairs.

        Args:
          embedding: float [N, D], of `rows`.
          real_logit: float [N].
        """
        return compare(
            embedding, real_logit, *self.places, self.judges_forgeries
        )


def compare(
    embedding: np.ndarray,
    real_logit: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    judges_forgeries: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosine and log_real of pairs; see `run_folder.pair_files`.

    Args:
      embedding: float [N, D], of unit length, or 0 where unreadable.
      real_logit: float [N].
      first: int [P], rows of both.
      second: int [P].
      judges_forgeries: whether `real_logit` says anything.
    """
    cosine = np.einsum("pd,pd->p", embedding[first], embedding[second])
    if not judges_forgeries:
        return cosine, np.zeros(0)
    log_real = similarity.log_sigmoid(real_logit)
    return cosine, log_real[first] + log_real[second]


class VerificationEvaluator:
    """Gathers the embeddings of all validation pictures, on the devices.

    Args:
      pairs: to score.
      width: D, of the embeddings.
    """

    def __init__(self, pairs: ValidationPairs, width: int):
        self._pairs, self._width = pairs, width

    def init(self) -> dict[str, np.ndarray]:
        """Returns nothing yet, of every picture."""
        count = len(self._pairs.rows)
        return {
            "embedding": np.zeros((count, self._width), np.float32),
            "real_logit": np.zeros(count, np.float32),
            "seen": np.zeros(count, bool),
        }

    def update(
        self,
        totals: dict[str, jax.Array],
        model: nnx.Module,
        batch: Mapping[str, jax.Array],
        constants: dict[str, jax.Array],
    ) -> dict[str, jax.Array]:
        """Adds the pictures of a batch; see `Evaluator`."""
        images = mixing.normalize(
            batch["image"][:, 0], constants["mean"], constants["std"]
        )
        found = model.embed(images)
        counted = (batch["weight"] > 0) & ~batch["bad"]
        # Filling has row -1; what lies beyond the end is dropped.
        place = jnp.searchsorted(constants["rows"], batch["row"])
        place = jnp.where(counted, place, len(self._pairs.rows))
        values = {
            "embedding": found.embedding,
            "real_logit": found.real_logit,
            "seen": counted,
        }
        return {
            name: totals[name].at[place].set(values[name], mode="drop")
            for name in totals
        }

    def compute(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns error rates over all pairs and by kind of negative.

        Pairs of a picture that cannot be read are left out.
        """
        pairs = self._pairs.without(~totals["seen"])
        cosine, log_real = pairs.compared(
            totals["embedding"], totals["real_logit"]
        )
        found = pairs.similarity(cosine, log_real)
        return scores_of(found, pairs.pairs.kind)


def scores_of(found: np.ndarray, kind: np.ndarray) -> dict[str, float]:
    """Returns the scores of pairs as an evaluation names them.

    Args:
      found: float [P], similarities.
      kind: int8 [P], indices of `verification.KINDS`.
    """
    whole = verification.summary(found, kind == verification.POSITIVE)
    scores = {f"val_{name}": value for name, value in whole.items()}
    for name, one in verification.summary_by_kind(found, kind).items():
        scores[f"val_eer_{name}"] = one["eer"]
    return scores
