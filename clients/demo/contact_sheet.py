"""A page that shows searches and what they found, in one file that needs no other."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lookwire import Hit, SearchResult

_STYLE = """
:root { color-scheme: light; --ink: #23262d; --soft: #6d7480; --line: #e3e5ea; --mark: #3451c6; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 48px 32px 64px; background: #f6f7f9; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 4px; font-size: 26px; letter-spacing: -0.01em; }
header p { margin: 0; color: var(--soft); max-width: 72ch; }
section { margin-top: 44px; }
.query { display: flex; align-items: center; gap: 16px; margin-bottom: 14px; }
.query img { width: 92px; height: 92px; border-radius: 8px; border: 3px solid var(--mark); }
h2 { margin: 0; font-size: 19px; font-weight: 650; }
.query p { margin: 2px 0 0; color: var(--soft); font-size: 13px; }
ol { list-style: none; margin: 0; padding: 0; display: grid; grid-template-columns: repeat(6, 1fr); gap: 14px; }
li { background: #fff; border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
li img { display: block; width: 100%; aspect-ratio: 1; }
li div { padding: 8px 12px 11px; font-size: 13px; }
li strong, li span { display: block; }
li strong { line-height: 1.35; margin-bottom: 3px; }
li span { color: var(--soft); font-variant-numeric: tabular-nums; }
li .score { color: var(--mark); font-weight: 600; }
.bar { height: 3px; margin: 0; background: var(--line); }
.bar i { display: block; height: 100%; background: var(--mark); }
@media (max-width: 900px) { ol { grid-template-columns: repeat(3, 1fr); } }
"""


@dataclass(frozen=True, slots=True)
class Search:
    """What was asked for, in words, and what came back; `picture` is the query, if it is one."""

    title: str
    condition: str
    result: SearchResult
    picture: Path | None = None


def write_page(path: Path, searches: Sequence[Search], folder: Path) -> None:
    """Writes the searches as an HTML page; `folder` is where the files are that hits name in their payloads."""
    sections = "\n".join(_section(search, folder) for search in searches)
    path.write_text(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lookwire: searches in the sample catalogue</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Searches in the sample catalogue</h1>
<p>Each row is one call of <code>client.search()</code> and shows the nearest items, best first. The blue number is the
score: the cosine between the vector of the query and that of the picture.</p>
</header>
{sections}
</body>
</html>
""",
        encoding="utf-8",
    )


def _section(search: Search, folder: Path) -> str:
    picture = f'<img src="{_data_uri(search.picture)}" alt="the picture searched for">' if search.picture else ""
    notes = [search.condition, plan_in_words(search.result), f"{search.result.times.total_us / 1000:.1f} ms"]
    hits = "\n".join(_hit(hit, folder) for hit in search.result.hits)
    return f"""<section>
<div class="query">{picture}<div><h2>{escape(search.title)}</h2>
<p>{escape(" · ".join(note for note in notes if note))}</p></div></div>
<ol>
{hits}
</ol>
</section>"""


def _hit(hit: Hit, folder: Path) -> str:
    product = hit.payload
    stock = f"{product['stock']} in stock" if product["stock"] else "sold out"
    return f"""<li><img src="{_data_uri(folder / product["file"])}" alt="{escape(product["title"])}">
<p class="bar"><i style="width:{max(0.0, hit.score):.0%}"></i></p>
<div><span class="score">{hit.score:.3f}</span><strong>{escape(product["title"])}</strong>
<span>{product["price"]:.2f}{" (sale)" if product["sale"] else ""}</span><span>{stock}</span></div></li>"""


def plan_in_words(result: SearchResult) -> str:
    """Says how a search was carried out, such as "exact over 12 of 480 items"."""
    plan = result.plan
    matched = (
        f"{plan.match_count} of {plan.item_count}" if plan.match_count < plan.item_count else f"all {plan.item_count}"
    )
    return f"{plan.method} over {matched} items"


def _data_uri(picture: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()
