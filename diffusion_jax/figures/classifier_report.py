"""report.html of a run that trains a classifier of noisy images."""

import dataclasses
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusion_jax.figures import curves, explanations, page, sections
from diffusion_jax.figures.files import write_atomically
from diffusion_jax.figures.page import Picture


@dataclasses.dataclass(frozen=True)
class ClassifierReport:
    """What the page shows.

    Attributes:
      title, summary: heading, and the sentence or two under it.
      command: what to type to repeat the run.
      settings: the config, nested or flat; unset fields (None) are not shown.
      num_parameters: trained scalars of the network.
      parameter_overview: the table of clu's parameter_overview.
      metrics: rows of metrics.jsonl; "loss" and "accuracy" and their shares of noise levels become charts.
      scores: as read from evaluation.json.
      timing, machine: as in `report.Report`.
      readings, animation: the strip and the GIF of images, what is read under each.
    """

    title: str
    summary: str
    command: str
    settings: Mapping[str, Any]
    num_parameters: int
    parameter_overview: str
    metrics: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Any]
    timing: Mapping[str, float]
    machine: Mapping[str, str]
    readings: Picture
    animation: Picture


def write_classifier_report(path: str | os.PathLike[str], report: ClassifierReport) -> None:
    """Writes the page: HTML with its style and pictures inside, no script, and no address of anything outside."""
    parts = {
        "readings": ("What it reads", _readings(report)),
        "training": ("Training", _training(report)),
        "accuracy": ("Accuracy by noise level", _accuracy(report.scores)),
        "guidance": ("What it is for", explanations.classifier_guidance()),
        "time": ("Time and machine", sections.time(report.timing, report.machine)),
        "settings": ("Settings", sections.settings(report.settings, report.parameter_overview)),
        "repeat": ("Run it again", f"<pre><code>{html.escape(report.command)}</code></pre>"),
    }
    heading = f'<h1>{html.escape(report.title)}</h1><p class="summary">{html.escape(report.summary)}</p>'
    header = heading + page.cards(_headline(report))
    write_atomically(path, page.page(report.title, header, parts, "Written by diffusion_jax."))


def _headline(report: ClassifierReport) -> Iterator[tuple[str, str, str]]:
    scores = report.scores
    yield "Accuracy, all noise", f"{scores['accuracy']:.1%}", f"training images: {scores['training_accuracy']:.1%}"
    least = scores["by_noise_level"][0]
    yield "Accuracy, least noise", f"{least['accuracy']:.1%}", f"by chance: {scores['chance']:.1%}"
    yield "Parameters", sections.short_count(report.num_parameters), f"{report.num_parameters:,} in the network"


def _readings(report: ClassifierReport) -> str:
    caption = (
        "Held-out images with more and more noise, and under each the likeliest class with its probability; ✓ is right,"
        " ✗ is wrong."
    )
    strip = page.picture_figure(report.readings, "Images that become noisier from left to right", caption, wide=True)
    gif = page.picture_figure(
        report.animation,
        "An animation in which noise becomes images, with what is read in each",
        "The same from pure noise to the image: when does each reading settle?",
    )
    return strip + page.details("Animation (fold it away to stop it)", gif, is_open=True)


def _training(report: ClassifierReport) -> str:
    charts = sections.training_charts(report.metrics, "loss", "Training loss")
    charts += sections.training_charts(report.metrics, "accuracy", "Training accuracy", are_shares=True)
    return explanations.classifier() + f'<div class="charts">{"".join(charts)}</div>'


def _accuracy(scores: Mapping[str, Any]) -> str:
    levels = scores["by_noise_level"]
    names = [name for name in levels[0] if name not in ("t", "noise_to_signal", "cross_entropy")]
    times = [level["t"] for level in levels]
    lines = {sections.title(name): (times, [level[name] for level in levels]) for name in names}
    lines["By chance"] = (times, [scores["chance"]] * len(times))
    chart = curves.line_chart(lines, title="Accuracy by noise level", x_label="t", y_label="accuracy", are_shares=True)
    table = page.table(
        [[sections.text(value) for value in level.values()] for level in levels], [*map(sections.title, levels[0])]
    )
    return (
        "<p>Held-out images at each noise level, with the same noise in every image throughout. Guidance is steered by "
        "the gradient of these readings: where they are no better than chance, it has no direction.</p>"
        + f'<div class="charts">{page.figure(chart, "The share of held-out images that are read right.")}</div>'
        + page.details("Table", table, is_open=True)
        + sections.protocol(scores["protocol"])
    )
