"""The segmentation network, with a backbone, a decode head and an auxiliary head."""

import flax.linen as nn
import jax

from nonlocal_jax.errors import InputError
from nonlocal_jax.ops import resize


class SegmentationNet(nn.Module):
    """A backbone with two heads, like the ``EncoderDecoder`` of mmsegmentation.

    The decode head reads the last stage of the backbone. The auxiliary head reads the stage before.
    The auxiliary head is only for training: ``init`` creates its parameters, but inference does not
    run it.

    Attributes:
      backbone: Module that maps images to a list of feature maps.
      decode_head: Module that maps a feature map to logits.
      auxiliary_head: Module that maps a feature map to the logits of the auxiliary loss.
      align_corners: Convention of the resize to the size of the input, see ``ops.resize``.
    """

    backbone: nn.Module
    decode_head: nn.Module
    auxiliary_head: nn.Module
    align_corners: bool = False

    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Maps normalized RGB images ``[B, H, W, 3]`` to logits, at least float32.

        Clips ``[B, T, H, W, 3]`` are segmented frame by frame, see ``backbones.ResNet``.

        Returns:
          At inference, logits ``[B, H, W, classes]`` or ``[B, T, H, W, classes]``. In training, the
          logits of the decode head and of the auxiliary head at the size of the feature map.

        Raises:
          InputError: The images have the wrong shape or type.
        """
        if images.ndim not in (4, 5) or images.shape[-1] != 3:
            raise InputError(
                f"images has shape {images.shape}; "
                "use normalized RGB images [B, H, W, 3] or clips [B, T, H, W, 3]"
            )
        *_, before, last = self.backbone(images, train)
        logits = self.decode_head(last, train)
        if train or self.is_initializing():
            auxiliary = self.auxiliary_head(before, train)
            if train:
                return logits, auxiliary
        return resize(logits, images.shape[-3:-1], align_corners=self.align_corners)
