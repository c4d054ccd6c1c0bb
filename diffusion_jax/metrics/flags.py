"""`./launch/local.sh metrics` has these options."""

import argparse
import textwrap
from typing import NoReturn

from diffusion_jax.metrics import features, measure, protocols
from diffusion_jax.metrics.extraction import BATCH_SIZE

PROGRAM = "./launch/local.sh metrics"
DESCRIPTION = """\
Scores generated images against reference images or statistics. Prints one JSON object with every number and the
protocol that it belongs to; everything else goes to stderr.
"""
EXAMPLES = """\
examples:
  {program} --generated samples/ --reference VIRTUAL_imagenet256_labeled.npz --weights inception.pth
  {program} --generated samples.npz --reference train/ --protocol clean --metrics fid,kid,prc --weights inception.pth
  {program} --generated samples/ --reference train/ --features efficientnet-lite0      # needs no download
  {program} --reference train/ --save-statistics train.npz --weights inception.pth     # once, for later runs

--generated and --reference may be a folder (searched at every depth), a .zip or .tar of images, an .npz with uint8
images, or tfds:NAME/SPLIT; --reference also a statistics file of this project, TTUR, pytorch-fid, ADM, EDM, clean-fid,
score_sde, StyleGAN3, MeanFlow or torch-fidelity. Exit code 2 means bad input, such as images that cannot be read.
"""


class UsageError(ValueError):
    """A command line that cannot be; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the options, with their help."""
    metrics = "".join(f"  {name:16}{metric.help}\n" for name, metric in measure.METRICS.items())
    published = "".join(f"  {name:16}{protocol.reproduces}\n" for name, protocol in protocols.PROTOCOLS.items())
    names = ", ".join(features.NAMES)
    networks = textwrap.fill(names, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    result = _Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog="\n".join(
            (
                f"metrics:\n{metrics}",
                f"features:\n{networks}\n",
                f"protocols:\n{published}",
                EXAMPLES.format(program=PROGRAM),
            )
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--generated", metavar="SET", help="the images to score")
    add("--reference", metavar="SET", help="real images, or a statistics file")
    add("--metrics", metavar="LIST", help=f"names with commas; {','.join(measure.DEFAULT_METRICS)} where possible")
    add("--prompts", metavar="FILE", help="for metrics that need them: the texts of --generated's images, one a line")
    add("--labels", metavar="FILE", help="for metrics that need them: the classes of --generated's images, one a line")
    add(
        "--features",
        metavar="NAME",
        default="inception",
        help="the network, by the beginning of its name; inception by default",
    )
    add("--weights", metavar="FILE", help="the extractor's weights; otherwise those installed or cached")
    add("--protocol", metavar="NAME", help=f"{', '.join(protocols.PROTOCOLS)}; by default the reference's, else tf")
    add("--save-statistics", metavar="FILE", help="write the moments of --reference (without one, of --generated) here")
    add("--skip-bad", action="store_true", help="leave unreadable images out instead of failing")
    add("--force", action="store_true", help="compare even what was measured in different ways")
    add("--fast", action="store_true", help="rounded arithmetic on accelerators; recorded, moves the numbers")
    add(
        "--no-intervals",
        action="store_true",
        help="no standard errors of fid and kid, which take time with many images",
    )
    add("--no-cache", action="store_true", help="neither read nor write the cache of reference statistics")
    add("--batch-size", metavar="N", type=int, default=BATCH_SIZE, help=f"images at a time ({BATCH_SIZE})")
    return result
