"""Atrous convolution: finer last maps from the same weights.

A stage that would make the map coarser than wanted gives up its stride, and
what follows spreads its filters by as much (Chen et al., "DeepLab", arXiv
1606.00915). What the convolution with the stride itself does is read in
three ways; weights fit all of them, outputs differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.errors import UserError

# What the first block of a stage without stride has:
#   torchvision: the dilation of the stage before. So the dilated network
#     computes what the strided one does, at every place instead of every
#     second (DeepLab's own reading).
#   mmseg: half of the stage's dilation (`contract_dilation`).
#   smp: the stage's dilation, as all its other blocks.
READINGS = ("torchvision", "mmseg", "smp")
OUTPUT_STRIDES = (8, 16, 32)


def check(output_stride: int, reading: str) -> None:
    """Refuses what no network here can be built with.

    Raises:
      UserError: an unknown reading or output stride.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise UserError(
            f"no encoder has output_stride={output_stride!r}; choose one of "
            f"{', '.join(map(str, OUTPUT_STRIDES))}"
        )
    if reading not in READINGS:
        raise UserError(
            f"no encoder has dilation={reading!r}; choose one of "
            f"{', '.join(READINGS)}"
        )


def plan(
    strides: Sequence[int], start: int, output_stride: int, reading: str
) -> Iterator[tuple[int, int, int]]:
    """Yields for each stage what its blocks have.

    Args:
      strides: of the stages, without dilation.
      start: stride of what the first stage gets.
      output_stride: which the last map is to have at most.
      reading: of `READINGS`.

    Yields:
      The stride of the first block, its dilation, and that of the others.
    """
    at, dilation = start, 1
    for stride in strides:
        before = dilation
        if at * stride > output_stride:
            dilation, stride = dilation * stride, 1
        at *= stride
        first = {
            "torchvision": before,
            "mmseg": max(dilation // 2, 1),
            "smp": dilation,
        }
        yield stride, first[reading], dilation
