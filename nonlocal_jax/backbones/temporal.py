"""What a ResNet does along the frames of a clip."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops.shift import Shift

Inflation = Literal["3x1x1", "3x3x3"]


def check_places(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Requires that an attribute contains only known places.

    Raises:
      InputError: It contains others.
    """
    if unknown := [place for place in given if place not in known]:
        raise InputError(
            f"{name} is {given}, but {', '.join(unknown)} cannot be used; "
            f"use some of {', '.join(known)}"
        )


@dataclasses.dataclass(frozen=True)
class Temporal:
    """What a ResNet does along the frames of a clip. The default processes each frame separately.

    Places are residual blocks, as "layer{stage}.{index}" with stages from 1 and indices from 0.
    Convolutions pad frames with zeros on both sides. Pools do not pad frames.

    Attributes:
      conv1_frames: Frames of the kernel of conv1, odd.
      conv1_stride: Stride of conv1 over frames.
      pool1_frames: Frames of the window of the max pool after conv1.
      pool1_stride: Stride of this pool over frames.
      pool1_padding: Padding of this pool along height and width, 0 or 1. Its window is 3x3. It is 1
        in PyTorch's ResNets and 0 in the authors' video networks.
      pool2_frames: Frames of the window, and stride over frames, of a max pool after stage 1 and
        its inserted blocks. 1 means no pool.
      inflate: Convolutions that have kernels over 3 frames at ``inflate_at`` (I3D). "3x1x1" is
        conv1, "3x3x3" is conv2.
      inflate_at: Places of these convolutions.
      shift: Direction of the temporal shift of TSM, see ``ops.temporal_shift``. "both", or "past"
        for networks that process a stream.
      shift_at: Places where the input of conv1 is shifted. The shortcut is not shifted.
      group_frames: Number of frames F. An inserted block at ``group_at`` relates only the positions
        of F consecutive frames, see ``blocks.NonLocalBlock.frames``.
      group_at: Places of these blocks.
    """

    conv1_frames: int = 1
    conv1_stride: int = 1
    pool1_frames: int = 1
    pool1_stride: int = 1
    pool1_padding: int = 1
    pool2_frames: int = 1
    inflate: Inflation = "3x1x1"
    inflate_at: tuple[str, ...] = ()
    shift: Shift = "both"
    shift_at: tuple[str, ...] = ()
    group_frames: int | None = None
    group_at: tuple[str, ...] = ()

    def check(self, places: Sequence[str], block_at: Sequence[str], stem: str) -> None:
        """Checks the values, and that they fit a network.

        Args:
          places: The residual blocks of the network.
          block_at: Those with an inserted block.
          stem: Kind of the stem.

        Raises:
          InputError: They do not fit.
        """
        for name, kind in (("inflate", Inflation), ("shift", Shift)):
            if getattr(self, name) not in get_args(kind):
                choices = " or ".join(map(repr, get_args(kind)))
                raise InputError(f"{name} is {getattr(self, name)!r}; use {choices}")
        if self.pool1_padding not in (0, 1):
            raise InputError(f"pool1_padding is {self.pool1_padding!r}; use 0 or 1")
        if bool(self.group_at) != (self.group_frames is not None):
            raise InputError(
                f"group_frames is {self.group_frames!r} and group_at is {self.group_at!r}; set "
                "both or neither"
            )
        check_places("inflate_at", self.inflate_at, places)
        check_places("shift_at", self.shift_at, places)
        check_places("group_at", self.group_at, block_at)
        if stem != "v1" and max(self.conv1_frames, self.conv1_stride) > 1:
            raise InputError(
                f"stem {stem!r} does not support conv1_frames and conv1_stride larger than 1; use "
                "stem='v1'"
            )

    def kernel_frames(self, place: str) -> tuple[int, int]:
        """Returns the frames of the kernels of conv1 and conv2 of a residual block."""
        if place not in self.inflate_at:
            return 1, 1
        return (3, 1) if self.inflate == "3x1x1" else (1, 3)

    @property
    def relates_frames(self) -> bool:
        """Whether any layer other than an inserted block reads more than one frame or skips frames.

        Such a network needs clips.
        """
        frames = self.conv1_frames, self.pool1_frames, self.pool2_frames
        strides = self.conv1_stride, self.pool1_stride
        return max(frames + strides) > 1 or bool(self.inflate_at or self.shift_at)
