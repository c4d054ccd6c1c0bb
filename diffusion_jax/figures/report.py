"""report.html: one self-contained page that shows a run, explains it and says how to repeat it."""

import dataclasses
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusion_jax.figures import curves, explanations, page, sections
from diffusion_jax.figures.files import write_atomically
from diffusion_jax.figures.page import Picture

_DISTANCE_NAMES = {
    "frechet_distance_classifier": "Fréchet distance in the features of a small classifier",
    "frechet_distance_pixels": "Fréchet distance of pixels, images averaged down to 8 by 8",
}
# Scores whose meaning needs more words than their name.
_SCORE_NAMES = {
    "read_as_requested": "Read as the class asked for",
    "classifier_test_accuracy": "The same for real test images",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page shows. A part that is None or empty is left out, with the section that would hold only it.

    Attributes:
      title, summary: heading, and the sentence or two under it.
      command: what to type to repeat the run.
      settings: the config, nested or flat; unset fields (None) are not shown.
      num_parameters: trained scalars of the network.
      parameter_overview: the table of clu's parameter_overview.
      metrics: rows of metrics.jsonl; "loss" and "loss_noise_<i>_of_<n>" become charts.
      scores: what metrics.score_generated gives, as read from evaluation.json; also its "scores" in features of a
        known network, and its "sweep" over ways of sampling.
      training_scores: the names in `metrics` of scores that were taken in training.
      timing: name -> number, the unit at the end of the name: *_seconds or *_per_second.
      machine: name -> text: devices, versions.
      samples, real, sweep: the grid, one of real images and the sweep's chart, as files or in memory.
      before_training, after_training: sections of the method's own, anchor -> (heading, HTML).
      training_words: HTML that says what the loss is, before its charts.
      curves: further names in `metrics` that become charts -> their headings.
    """

    title: str
    summary: str
    command: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_parameters: int | None = None
    parameter_overview: str = ""
    metrics: Sequence[Mapping[str, Any]] = ()
    scores: Mapping[str, Any] | None = None
    training_scores: Sequence[str] = ()
    timing: Mapping[str, float] = dataclasses.field(default_factory=dict)
    machine: Mapping[str, str] = dataclasses.field(default_factory=dict)
    samples: Picture | None = None
    real: Picture | None = None
    sweep: Picture | None = None
    before_training: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    after_training: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    training_words: str = ""
    curves: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Writes the page: HTML with its style and pictures inside, no script, and no address of anything outside."""
    parts = {
        "samples": ("Samples", _samples(report)),
        **report.before_training,
        "training": ("Training", _training(report)),
        **report.after_training,
        "scores": ("Scores", _scores(report)),
        "time": ("Time and machine", sections.time(report.timing, report.machine)),
        "settings": ("Settings", sections.settings(report.settings, report.parameter_overview)),
        "repeat": ("Run it again", f"<pre><code>{html.escape(report.command)}</code></pre>"),
    }
    header = f'<h1>{html.escape(report.title)}</h1><p class="summary">{html.escape(report.summary)}</p>' + page.cards(
        _headline(report)
    )
    content = page.page(
        report.title, header, {key: value for key, value in parts.items() if value[1]}, "Written by diffusion_jax."
    )
    write_atomically(path, content)


def _headline(report: Report) -> Iterator[tuple[str, str, str]]:
    scores = report.scores or {}
    for name in _distances(scores):
        remark = f"to real test images; training images: {scores[f'{name}_train_test']:.3g}"
        yield "Fréchet distance", f"{scores[name]:.3g}", remark
    if "read_as_requested" in scores:
        remark = f"real test images: {scores['classifier_test_accuracy']:.1%}"
        yield _SCORE_NAMES["read_as_requested"], f"{scores['read_as_requested']:.1%}", remark
    if report.num_parameters is not None:
        yield "Parameters", sections.short_count(report.num_parameters), f"{report.num_parameters:,} in the network"
    if seconds := report.timing.get("training_seconds"):
        rate = report.timing.get("training_images_per_second")
        yield "Training", sections.duration(seconds), f"{rate:,.0f} images/s" if rate else ""


def _samples(report: Report) -> str:
    if report.samples is None:
        return ""
    caption = "New images, each made by the trained network from noise of its own."
    pictures = [page.picture_figure(report.samples, "A grid of generated images", caption)]
    if report.real is not None:
        caption = "Real images that the network has not seen, to compare with; in the same order if they have classes."
        pictures.append(page.picture_figure(report.real, "A grid of real images", caption))
    return f'<div class="beside">{"".join(pictures)}</div>' if len(pictures) > 1 else pictures[0]


def _training(report: Report) -> str:
    charts = sections.training_charts(report.metrics, "loss", "Training loss")
    for name, heading in report.curves.items():
        charts += sections.training_charts(report.metrics, name, heading)
    if not charts:
        return ""
    for name in report.training_scores:
        chart = curves.line_chart(
            {name: curves.series(report.metrics, name)}, title=sections.title(name), y_label=sections.title(name)
        )
        charts.append(
            page.figure(chart, f"{sections.title(name)} of images drawn while training, always from the same noise.")
        )
    return report.training_words + f'<div class="charts">{"".join(charts)}</div>'


def animated(animation: Picture, alt: str, caption: str) -> str:
    """A GIF with its caption, which can be folded away."""
    return page.details(
        "Animation (fold it away to stop it)", page.picture_figure(animation, alt, caption), is_open=True
    )


def _distances(scores: Mapping[str, Any]) -> list[str]:
    return [key.removesuffix("_ratio") for key in scores if key.endswith("_ratio")]


def _scores(report: Report) -> str:
    scores = report.scores
    if not scores:
        return ""
    parts = [explanations.frechet()]
    for name in _distances(scores):
        generated, baseline = scores[name], scores[f"{name}_train_test"]
        texts = {
            "Generated to test": f"{generated:.4g}",
            "Training to test": f"{baseline:.4g} ± {scores[f'{name}_train_test_std']:.2g}",
        }
        lengths = [value / max(generated, baseline, 1e-12) for value in (generated, baseline)]
        title = _DISTANCE_NAMES.get(name, sections.title(name))
        parts.append(page.bars(dict(zip(texts, lengths, strict=True)), title, texts))
    shares = {_SCORE_NAMES[key]: scores[key] for key in _SCORE_NAMES if key in scores}
    if "read_as_requested" in scores:
        parts.append(
            "<h3>Do images show the class that was asked for?</h3><p>A small classifier, trained on the training "
            "images alone, reads the generated images. Its share of right answers on real test images is the mark to "
            "reach. Generated images can be above it: people also write digits, or take photographs, that are hard to "
            "tell, and a network that is guided, or that has learnt the middle of a class better than its edge, draws "
            "fewer of those. So a share above the mark says that images are typical, not that they are better.</p>"
        )
        parts.append(page.bars(shares, "All classes", {name: f"{share:.1%}" for name, share in shares.items()}))
        by_class = scores["read_as_requested_per_class"]
        each = page.bars(by_class, "By class", {name: f"{share:.1%}" for name, share in by_class.items()})
        parts.append(each if len(by_class) <= 20 else page.details(f"All {len(by_class)} classes", each))
    if "bits_per_dimension" in scores:
        parts.append(_likelihood(scores["bits_per_dimension"]))
    parts.append(sections.protocol(scores.get("protocol", {})))
    if "scores" in scores:
        parts.append(_published(scores["scores"]))
    if "sweep" in scores:
        parts.append(_sweep(scores["sweep"], report.sweep))
    return "".join(parts)


def _published(scores: Mapping[str, Any]) -> str:
    """Scores in the features of a known network, which other projects may have too."""
    rows = [(sections.title(key), sections.text(value)) for key, value in scores.items() if key != "protocol"]
    name = html.escape(scores["protocol"]["extractor"])
    return f"<h3>In the features of {name}</h3>{page.table(rows)}{sections.protocol(scores['protocol'])}"


def _sweep(sweep: Mapping[str, Any], picture: Picture | None) -> str:
    """The ways of sampling that were compared."""
    results = sweep["results"]
    names = [name for name in results[0] if any(entry[name] is not None for entry in results)]
    rows = [[sections.text(entry[name]) for name in names] for entry in results]
    parts = ["<h3>Ways of sampling</h3>"]
    if picture is not None:
        caption = f"{sections.title(sweep['score'])} of the same images, drawn in different ways."
        parts.append(page.picture_figure(picture, "A score against network evaluations", caption, wide=True))
    return (
        "".join(parts)
        + page.table(rows, [sections.title(name) for name in names])
        + sections.protocol(sweep["protocol"])
    )


def _likelihood(bits: Mapping[str, Any]) -> str:
    return (
        "<h3>How likely are real images?</h3><p>Test images cost "
        f"<strong>{bits['mean']:.3f} ± {bits['standard_error']:.2g} bits</strong> a value under the model "
        f"({bits['images']} images; {html.escape(bits['estimate'])}). Uncompressed they cost "
        f"{bits.get('uncompressed', 8):.4g}.</p>"
    )
