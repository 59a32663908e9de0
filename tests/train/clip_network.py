"""A network of clips that compiles in a moment: two convolutions with batch norms."""

import flax.linen as nn

import nonlocal_jax as nlj


class Net(nn.Module):
    num_classes: int
    norm_group_size: int | None = None

    @nn.compact
    def __call__(self, x, train=False, window=None):
        for i in (1, 2):
            x = nlj.layers.Conv(4, stride=2, name=f"conv{i}")(x)
            norm = nlj.layers.BatchNorm(group_size=self.norm_group_size, name=f"bn{i}")
            x = nn.relu(norm(x, use_running_average=not train))
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2, 3)))
        return nn.Dense(self.num_classes, name="classifier")(x)


nlj.models.NETWORKS["clip"] = Net
