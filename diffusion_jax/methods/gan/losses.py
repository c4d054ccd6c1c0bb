"""The games that a generator and a discriminator play: what each loses by the logits of real and generated images.

Every function takes the logits of real images [B] and of generated ones [B] and gives losses [B], example by example;
their means are minimised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Game(NamedTuple):
    """The two losses of a game.

    Attributes:
      discriminator: what the discriminator minimises.
      generator: what the generator minimises.
      is_relative: whether only differences of logits mean anything, and not whether they are above 0.
    """

    discriminator: Loss
    generator: Loss
    is_relative: bool = False


# -log D(x) - log(1 - D(G(z))) and -log D(G(z)), D a sigmoid of the logit (Goodfellow et al. 2014, section 3). Of the
# paper's two losses of the generator this is the one whose gradient does not vanish while the generator loses.
NON_SATURATING = Game(
    lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
    lambda real, fake: jax.nn.softplus(-fake),
)
# D(G(z)) - D(x) and -D(G(z)): the earth mover's distance, where D has slope 1 (Arjovsky et al. 2017, equation 2).
WASSERSTEIN = Game(lambda real, fake: fake - real, lambda real, fake: -fake, is_relative=True)
# max(0, 1 - D(x)) + max(0, 1 + D(G(z))) and -D(G(z)) (Lim and Ye 2017; Miyato et al. 2018, equations 16 and 17).
HINGE = Game(lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake), lambda real, fake: -fake)
# log(1 + exp(D(G(z)) - D(x))) and the same with the sides exchanged: a real image and a generated one are judged as a
# pair, so that every real image pulls at the generator (Huang et al. 2024, R3GAN, equation 2).
RELATIVISTIC = Game(
    lambda real, fake: jax.nn.softplus(fake - real),
    lambda real, fake: jax.nn.softplus(real - fake),
    is_relative=True,
)
GAMES = {
    "non_saturating": NON_SATURATING,
    "wasserstein": WASSERSTEIN,
    "hinge": HINGE,
    "relativistic": RELATIVISTIC,
}
