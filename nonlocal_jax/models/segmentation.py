"""The segmentation network: backbone, decode head, auxiliary head."""

import flax.linen as nn
import jax

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops import resize


class SegmentationNet(nn.Module):
    """mmsegmentation's ``EncoderDecoder``.

    The decode head reads the last stage of the backbone, the auxiliary head the one before it. The
    auxiliary head only serves training: ``init`` makes its parameters, inference does not run it.

    Attributes:
      backbone: images to a list of feature maps.
      decode_head: feature map to logits.
      auxiliary_head: the same for the auxiliary loss.
      align_corners: convention of the resize to the input's size.
    """

    backbone: nn.Module
    decode_head: nn.Module
    auxiliary_head: nn.Module
    align_corners: bool = False

    def __call__(
        self, images: jax.Array, *, train: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Maps normalized RGB ``[B, H, W, 3]`` to logits, at least float32.

        Returns:
          ``[B, H, W, classes]`` at inference; in training the logits of the decode and of the
          auxiliary head at the size of the feature map, not resized.

        Raises:
          InputError: ``images`` is not ``[B, H, W, 3]``.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(f"need normalized RGB images [B, H, W, 3]; got {images.shape}")
        *_, before, last = self.backbone(images, train=train)
        logits = self.decode_head(last, train=train)
        if train or self.is_initializing():
            auxiliary = self.auxiliary_head(before, train=train)
            if train:
                return logits, auxiliary
        return resize(logits, images.shape[1:3], align_corners=self.align_corners)
