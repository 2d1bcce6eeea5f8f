"""One self-contained HTML page: its style, and how figures go into it."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

from analysis.style import INK

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --quiet: #59636e;
  --line: #d8dee4; --band: #f4f6f8; --link: #0f5fa8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e4e8ec; --quiet: #9aa5b1;
  --line: #363d45; --band: #1c2127; --link: #6cb6ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header, nav { max-width: 66rem; margin: 0 auto; padding: 0 1.1rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p, li { max-width: 46rem; }
a { color: var(--link); }
nav { font-size: .92rem; padding-top: .4rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
.quiet, figcaption, .caption { color: var(--quiet); font-size: .9rem; }
.warn { border-left: 4px solid #d4500b; padding: .4rem .8rem; background: var(--band);
  max-width: 46rem; }
figure { margin: 1rem 0 1.6rem; }
figure svg, figure img { width: 100%; height: auto; max-width: 62rem; display: block; }
.wide { overflow-x: auto; margin: .4rem 0 1rem; }
.tall { max-height: 30rem; overflow: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--line); font-weight: 600; background: var(--paper);
  position: sticky; top: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
tbody tr:hover { background: var(--band); }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: var(--paper); }
.wide th:first-child { z-index: 1; }
code { font-size: .88em; overflow-wrap: anywhere; }
td { overflow-wrap: break-word; }
summary { cursor: pointer; color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { font-size: 15px; } dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .4rem; } .figure-scroll { overflow-x: auto; }
  .figure-scroll svg, .figure-scroll img { width: 40rem; max-width: none; } }
@media print { :root { --paper: #fff; --ink: #000; --quiet: #444; --line: #bbb; --band: #fff; }
  nav { display: none; } body { font-size: 10pt; } .tall { max-height: none; }
  .wide, .tall { overflow: visible; } table { font-size: 7.5pt; } th { position: static; }
  figure img, figure svg { max-height: 23cm; width: auto; max-width: 100%; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def page(title: str, intro: str, sections: list[tuple[str, str]]) -> str:
    """Return the whole page.

    Args:
        title: Plain text.
        intro: HTML under the title.
        sections: Heading (plain text) and HTML of each.
    """
    links = " ".join(
        f'<a href="#s{number}">{html.escape(name)}</a>' for number, (name, _) in enumerate(sections)
    )
    body = "".join(
        f'<section><h2 id="s{number}">{html.escape(name)}</h2>{content}</section>'
        for number, (name, content) in enumerate(sections)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{html.escape(title)}</h1>{intro}</header><nav>{links}</nav>"
        f"<main>{body}</main></body></html>\n"
    )


def figure(title: str, caption: str, picture: str, files: str = "") -> str:
    """Return a figure with its heading and caption.

    Args:
        title: Plain text.
        caption: Plain text.
        picture: HTML of the picture.
        files: HTML that names its files.
    """
    return (
        f'<figure><h3>{html.escape(title)}</h3><div class="figure-scroll">{picture}</div>'
        f"<figcaption>{html.escape(caption)} {files}</figcaption></figure>"
    )


def inline_svg(text: str, prefix: str, label: str) -> str:
    """Return an SVG file's drawing for use inside the page.

    Its ids get a prefix, so that several drawings do not mix, and what is drawn in ink takes the
    colour of the page's text, light or dark.

    Args:
        text: The file.
        prefix: Unique in the page.
        label: What the drawing shows, for those who cannot see it.
    """
    start = text.index("<svg")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[start:], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    text = text.replace(INK, "currentColor")
    head = f'<svg role="img" aria-label="{html.escape(label, quote=True)}"'
    return text.replace("<svg", head, 1)


def inline_png(path: Path, label: str) -> str:
    """Return a PNG file as an image inside the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(label, quote=True)}" src="data:image/png;base64,{data}">'
