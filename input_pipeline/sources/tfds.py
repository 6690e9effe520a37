"""TensorFlow Datasets as a source, read from ArrayRecord, without TensorFlow.

The dataset must be prepared already (`tfds build --file_format=array_record`);
nothing is downloaded here.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from core import csv_table
from core.errors import UserError
from input_pipeline.sources.base import Examples, Source, fingerprint


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsExamples(Examples):
    """One split of a prepared dataset.

    Attributes:
      dataset: builder name with optional config and version.
      split: `train`, `train[:90%]`, …
      data_dir: the folder that holds the prepared dataset; empty for the
        default of TensorFlow Datasets.
      image_key: the image's feature name.
    """

    dataset: str
    split: str
    data_dir: str
    image_key: str

    def read(self, row: int) -> dict[str, bytes]:
        """Returns `image`, encoded as it is stored."""
        records = _records(self.dataset, self.split, self.data_dir)
        return {"image": records[int(row)][self.image_key]}


def open_tfds(data: Any) -> Source:
    """Opens `tfds:<name>`, prepared in `data.root` or the default folder.

    Args:
      data: `source`, `root`, and the `tfds_…` fields of config.data.

    Raises:
      UserError: not prepared as ArrayRecord, or no such split or feature.
    """
    name = data.source.removeprefix("tfds:")
    builder = _builder(name, data.root)
    _feature(builder, data.tfds_image, tfds.features.Image)
    label = _feature(builder, data.tfds_label, tfds.features.ClassLabel)
    labelled = _examples(data, builder, data.tfds_split_train)
    test = None
    if data.tfds_split_test:
        test = _examples(data, builder, data.tfds_split_test)
        # A test split's labels must not reach training.
        test = dataclasses.replace(test, labels=np.full_like(test.labels, -1))
    return Source(
        name=data.source,
        labelled=labelled,
        test=test,
        classes=tuple(label.names),
        sample_submission=None,
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(
            labelled.ids,
            labelled.labels,
            [builder.info.splits.total_num_examples],
        ),
    )


def _examples(data: Any, builder: Any, split: str) -> TfdsExamples:
    splits = builder.info.splits
    if split.partition("[")[0] not in splits:
        guess = csv_table.did_you_mean(split, splits)
        raise UserError(
            f"{data.source} has no split '{split}', only "
            f"{', '.join(map(repr, splits))}; set --config.data."
            f"tfds_split_train and --config.data.tfds_split_test{guess}"
        )
    name = data.source.removeprefix("tfds:")
    try:
        records = _records(name, split, data.root)
        labels = [int(record[data.tfds_label]) for record in records]
    except Exception as error:
        raise UserError(
            f"{data.source} in {builder.data_dir} cannot be read as "
            f"ArrayRecord ({_first_line(error)}); prepare it with 'tfds build "
            f"{name} --file_format=array_record'"
        ) from error
    ids = [f"{split}-{row:06d}" for row in range(len(labels))]
    return TfdsExamples(
        ids=np.array(ids),
        labels=np.array(labels, np.int32),
        dataset=name,
        split=split,
        data_dir=data.root,
        image_key=data.tfds_image,
    )


def _feature(builder: Any, key: str, kind: type) -> Any:
    features = builder.info.features
    fitting = [name for name in features if isinstance(features[name], kind)]
    if key in fitting:
        return features[key]
    flag = "tfds_image" if kind is tfds.features.Image else "tfds_label"
    raise UserError(
        f"tfds:{builder.info.name} has no {kind.__name__} feature '{key}', "
        f"only {', '.join(map(repr, fitting)) or 'others'}; set "
        f"--config.data.{flag}{csv_table.did_you_mean(key, fitting)}"
    )


def _builder(name: str, data_dir: str) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:
        raise UserError(
            f"tfds:{name} is not in {data_dir or 'the default folder'} "
            f"({_first_line(error)}); prepare it with 'tfds build {name} "
            "--file_format=array_record' or set --config.data.root"
        ) from error


@functools.lru_cache(maxsize=8)
def _records(name: str, split: str, data_dir: str) -> Any:
    """Random access to a split, images left encoded."""
    builder = tfds.builder(name, data_dir=data_dir or None)
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return builder.as_data_source(split=split, decoders=decoders)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
