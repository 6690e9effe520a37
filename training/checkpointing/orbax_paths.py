"""Where Orbax cannot yet write by itself; docs/faults.md shows both faults.

Everything here can go once Orbax takes any legal path and `s3://`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.serialization import tensorstore_utils

from core import paths


class LiteralPath(type(epath.Path("/"))):
    """A path none of whose own characters are a pattern.

    epath hands the whole path to `glob.glob`. Below a folder called `a[x]`
    Orbax finds none of the files that its processes wrote, and commits a
    checkpoint without them.
    """

    def glob(self, pattern: str) -> Iterator[LiteralPath]:
        """Yields what is called like `pattern` below this folder."""
        if str(self).startswith(("gs://", "s3://")):
            yield from super().glob(pattern)
        else:
            below = os.path.join(glob.escape(str(self)), pattern)
            yield from map(type(self), glob.glob(below))


def context(directory: Path, alone: bool = False) -> ocp.Context:
    """Returns Orbax's options for a folder of checkpoints.

    Args:
      directory: on a disk or in a bucket.
      alone: this process does not wait for the others.
    """
    made = ocp.Context()
    # `save` hands over copies: Orbax need not copy them again.
    made.memory_options.deepcopy_host_arrays = False
    # Else each replica writes a slice, cut by a program of its own: hundreds
    # to compile on eight devices.
    made.array_options.saving.use_replica_parallel = False
    made.pytree.loading.partial_load = True
    made.file_options.path_class = LiteralPath
    if alone:
        own = jax.process_index()
        made.multiprocessing_options.primary_host = own
        made.multiprocessing_options.active_processes = {own}
    if paths.is_remote(directory):
        # Objects cannot be renamed: a last file says that all are there.
        made.atomicity.mode = ocp.options.AtomicityMode.COMMIT_FILE
    if str(directory).startswith("s3://"):
        tensorstore_utils.build_kvstore_tspec = _kvstore_of_s3
    return made


_kvstore = tensorstore_utils.build_kvstore_tspec


def _kvstore_of_s3(directory: str, *arguments, **named) -> dict:
    """TensorStore's description of a folder: as of gs://, in another driver.

    Orbax (0.12.8) knows only `gs://`, and takes `s3://` for a relative path.
    """
    if not directory.startswith("s3:"):
        return _kvstore(directory, *arguments, **named)
    google = "gs:" + directory.removeprefix("s3:")
    spec = _kvstore(google, *arguments, **named)
    place = spec.get("base", spec)
    place["driver"] = "s3"
    # TensorStore itself reads only AWS's credentials from the environment.
    for field, variables in _S3_FIELDS.items():
        found = next(filter(None, map(os.environ.get, variables)), None)
        if found is not None:
            place[field] = found
    return spec


_S3_FIELDS = {
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "aws_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
}
