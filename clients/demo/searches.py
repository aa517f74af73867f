"""The searches of the demo, and how the terminal shows them."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clients.demo.contact_sheet import Search, plan_in_words
from lookwire import Client, GroupBy, StageTimes, field
from lookwire_export.garments import Garment, draw

TEXTS = ("a red striped dress", "polka-dot handbag in turquoise", "plain brown overcoat", "blue checked shirt")
UNSEEN = Garment("hat", "yellow", "striped")
UNSEEN_SEED = 2_000_001
"""Of a drawing that is not in the catalogue."""


def searches(client: Client, collection: str, out: Path) -> Iterator[Search]:
    """Searches by text, by a picture, under a condition, and for the best of each kind; yields each with its hits."""
    for text in TEXTS:
        yield Search(f"“{text}”", "", client.search(collection, text=text, top_k=6))

    picture = out / "query.jpg"
    draw(UNSEEN, UNSEEN_SEED).save(picture, quality=90)
    result = client.search(collection, image=picture, top_k=6)
    yield Search("like this picture", "a drawing that is not in the catalogue", result, picture)

    warm = field("colour").is_in(["red", "orange", "yellow"])
    result = client.search(collection, text="a dotted skirt", filter=warm & (field("price") < 45), top_k=6)
    yield Search("“a dotted skirt”", "red, orange or yellow, below 45.00", result)

    result = client.search(collection, text="green and striped", group_by=GroupBy("kind"), top_k=6)
    yield Search("“green and striped”", "the best of each kind", result)


def show(search: Search, console: Console) -> None:
    """Prints the hits of a search as a table, with how and how fast they were found below it."""
    console.print(Text.assemble((search.title, "bold"), f"  {search.condition}"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("score", "item", "colour"):
        table.add_column(heading)
    for heading in ("price", "stock"):
        table.add_column(heading, justify="right")
    for hit in search.result.hits:
        product = hit.payload
        price, stock = f"{product['price']:.2f}", f"{product['stock']}"
        table.add_row(f"{hit.score:.3f}", product["title"], product["colour"], price, stock)
    console.print(table)
    console.print(plan_in_words(search.result), style="dim")
    console.print(_times_in_words(search.result.times) + "\n", style="dim")


def _times_in_words(times: StageTimes) -> str:
    """Says where the time went, such as "3.1 ms: tokenise 0.1, infer 2.7", without the stages that took none."""
    stages = {
        "decode": times.decode_us,
        "tokenise": times.tokenise_us,
        "queue": times.queue_us,
        "infer": times.infer_us,
        "search": times.search_us,
        "fetch": times.fetch_us,
    }
    parts = ", ".join(f"{name} {us / 1000:.2f}" for name, us in stages.items() if us)
    return f"{times.total_us / 1000:.2f} ms" + (f": {parts}" if parts else "")
