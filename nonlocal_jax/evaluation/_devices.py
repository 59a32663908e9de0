"""The devices of an evaluation."""

import jax

from nonlocal_jax.errors import InputError
from nonlocal_jax.sharding import Shardings, check_shardings, make_mesh


def local_shardings(context: int, groups: int | None = None) -> Shardings:
    """Returns shardings over devices of this process. Every process has its own.

    Args:
      context: Number of devices that share an image. If the process has fewer, it is their number.
      groups: Number of groups of so many devices. Default: as many as there are.

    Raises:
      InputError: ``context`` is not positive.
    """
    if context < 1:
        raise InputError(f"mesh.context is {context}; use a positive integer")
    devices = jax.local_devices()
    context = min(context, len(devices))
    number = (groups or len(devices) // context) * context
    return Shardings(make_mesh(devices[:number], context=context))


def shardings_or_local(
    shardings: Shardings | None, context: int, groups: int | None = None
) -> Shardings:
    """Returns the given shardings, or if they are None, ``local_shardings``.

    Raises:
      InputError: ``shardings`` is something else, such as a mesh, or ``context`` is not positive.
    """
    if shardings is None:
        return local_shardings(context, groups)
    check_shardings(shardings)
    return shardings
