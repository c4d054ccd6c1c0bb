"""sweep.png: a score against the network evaluations that an image takes, and against the guidance scale."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from diffusion_jax.figures.files import write_atomically

Results = Sequence[Mapping[str, Any]]


def write_score_curves(path: str | os.PathLike[str], results: Results, score: str) -> None:
    """Draws one panel, or two where guidance scales differ.

    Args:
      path: of the PNG.
      results: entries with "sampler", "num_steps", "network_evaluations", "guidance_scale" (None without classes) and
        the score.
      score: its key, and the label of the axis.
    """
    scales = {entry["guidance_scale"] for entry in results}
    panels = 2 if len(scales) > 1 else 1
    figure = Figure(figsize=(6 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    several_samplers = len({entry["sampler"] for entry in results}) > 1
    for label, entries in _lines(results, ("sampler", "guidance_scale"), several_samplers, panels > 1).items():
        entries = sorted(entries, key=lambda entry: entry["network_evaluations"])
        x = [entry["network_evaluations"] for entry in entries]
        axes[0].plot(x, [entry[score] for entry in entries], marker="o", label=label)
    axes[0].set_xlabel("network evaluations an image")
    axes[0].set_xscale("log")
    evaluations = sorted({entry["network_evaluations"] for entry in results})
    axes[0].set_xticks(evaluations, [str(count) for count in evaluations])
    axes[0].minorticks_off()
    if panels > 1:
        several_steps = len({entry["num_steps"] for entry in results}) > 1
        for label, entries in _lines(results, ("sampler", "num_steps"), several_samplers, several_steps).items():
            entries = sorted(entries, key=lambda entry: entry["guidance_scale"])
            x = [entry["guidance_scale"] for entry in entries]
            axes[1].plot(x, [entry[score] for entry in entries], marker="o", label=label)
        axes[1].set_xlabel("guidance scale")
    for axis in axes:
        axis.set_ylabel(score)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def _lines(
    results: Results, keys: tuple[str, str], names_first: bool, names_second: bool
) -> dict[str, list[Mapping[str, Any]]]:
    """Label -> the entries that agree in both keys; the label names what differs between lines."""
    words = {"guidance_scale": "guidance {}", "num_steps": "{} steps", "sampler": "{}"}
    lines: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for entry in results:
        lines.setdefault((entry[keys[0]], entry[keys[1]]), []).append(entry)
    labelled = {}
    for values, entries in lines.items():
        shown = [
            words[key].format(f"{value:g}" if isinstance(value, float) else value)
            for key, value, named in zip(keys, values, (names_first, names_second), strict=True)
            if named
        ]
        labelled[", ".join(shown)] = entries
    return labelled
