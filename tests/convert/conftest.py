"""Networks that many tests of conversion use are traced only once."""

import functools
import json

import pytest

from nonlocal_jax.convert import names


@pytest.fixture(scope="session", autouse=True)
def traced_once():
    shapes = names.shapes

    @functools.cache
    def cached(config):
        return shapes(json.loads(config))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "shapes", lambda c: cached(json.dumps(dict(c), sort_keys=True)))
        yield
