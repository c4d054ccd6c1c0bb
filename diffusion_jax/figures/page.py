"""The building blocks of a self-contained HTML page: pictures as data URIs, tables, a frame with the style sheet."""

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from diffusion_jax.figures.grid import png

# A picture is a PNG or GIF file, or an image in memory.
Picture = str | os.PathLike[str] | Image.Image


def image(picture: Picture, alt: str) -> str:
    """An <img> that carries its data; `alt` says what is seen for those who cannot."""
    data = png(picture) if isinstance(picture, Image.Image) else Path(picture).read_bytes()
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
        mime = Image.MIME[opened.format or "PNG"]
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img src="data:{mime};base64,{encoded}" alt="{html.escape(alt)}" width="{width}" height="{height}">'


def figure(content: str, caption: str) -> str:
    """A figure with its caption (text, not HTML)."""
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def picture_figure(picture: Picture, alt: str, caption: str, wide: bool = False) -> str:
    """A figure of a picture; a wide one scrolls on a narrow screen instead of shrinking."""
    frame = '<div class="picture wide" tabindex="0">' if wide else '<div class="picture">'
    return figure(f"{frame}{image(picture, alt)}</div>", caption)


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), caption: str = "") -> str:
    """A table of text; the first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        '<div class="scroll"><table>'
        + (f"<caption>{html.escape(caption)}</caption>" if caption else "")
        + (f"<thead><tr>{head}</tr></thead>" if header else "")
        + f"<tbody>{body}</tbody></table></div>"
    )


def bars(shares: Mapping[str, float], caption: str, labels: Mapping[str, str]) -> str:
    """Horizontal bars of lengths 0 to 1 with the text of `labels` beside each."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td><span class="bar" style="--share: {share:.4f}"></span></td>'
        f"<td>{html.escape(labels[name])}</td></tr>"
        for name, share in shares.items()
    )
    return f'<table class="bars"><caption>{html.escape(caption)}</caption><tbody>{rows}</tbody></table>'


def cards(values: Iterable[tuple[str, str, str]]) -> str:
    """The numbers to see first: (name, value, remark)."""
    return (
        '<dl class="cards">'
        + "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}<small>{html.escape(remark)}</small></dd></div>"
            for name, value, remark in values
        )
        + "</dl>"
    )


def details(summary: str, content: str, is_open: bool = False) -> str:
    """Content that can be folded away."""
    return f"<details{' open' if is_open else ''}><summary>{html.escape(summary)}</summary>{content}</details>"


def section(anchor: str, heading: str, content: str) -> str:
    return f'<section id="{anchor}"><h2>{html.escape(heading)}</h2>{content}</section>'


def page(title: str, header: str, sections: Mapping[str, tuple[str, str]], footer: str) -> str:
    """The whole document. `sections`: anchor -> (heading, HTML); `header` and `footer` are HTML."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    links = "".join(
        f'<li><a href="#{anchor}">{html.escape(heading)}</a></li>' for anchor, (heading, _) in sections.items()
    )
    body = "\n".join(section(anchor, heading, content) for anchor, (heading, content) in sections.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header>{header}<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{body}\n</main>\n<footer>{footer}</footer>\n</body>\n</html>\n"
    )
