import base64
import re
from pathlib import Path

import numpy as np
import pytest

from lookwire import Hit, Plan, SearchResult, StageTimes
from lookwire_export.garments import ALL


@pytest.fixture(autouse=True)
def from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs are no installed packages: they run from the repository's root."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def test_ranks() -> None:
    """A rank counts the rows above the right one; a tie is not a find."""
    from clients.evaluate.figures import ranks, share

    gallery = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    queries = np.array([[1, 0], [1, 0], [0, 1]], np.float32)

    found = ranks(queries, gallery)

    assert found.tolist() == [0, 2, 1]
    assert share(found, 1) == pytest.approx(1 / 3)
    assert share(found, 2) == pytest.approx(2 / 3)


def test_contact_sheet(tmp_path: Path) -> None:
    """The page holds its pictures itself, and shows what was asked for as text, whatever it contains."""
    from clients.demo.contact_sheet import Search, write_page

    (tmp_path / "a.jpg").write_bytes(b"a picture")
    (tmp_path / "query.jpg").write_bytes(b"the query")
    product = {"title": "Red & white <hat>", "file": "a.jpg", "price": 9.95, "stock": 0, "sale": True}
    result = SearchResult(
        hits=(Hit("a", 0.75, product, None),),
        plan=Plan("gather", item_count=480, match_count=12),
        sequence=1,
        fingerprint="",
        times=StageTimes(0, 0, 0, 0, 0, 0, 0, total_us=2500),
    )

    write_page(tmp_path / "page.html", [Search("<i>hats</i>", "below 10", result, tmp_path / "query.jpg")], tmp_path)

    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)
    assert [base64.b64decode(source) for source in sources] == [b"the query", b"a picture"]
    assert page.count("src=") == 2
    assert "&lt;i&gt;hats&lt;/i&gt;" in page
    assert "Red &amp; white &lt;hat&gt;" in page
    assert "below 10 · gather over 12 of 480 items · 2.5 ms" in page
    assert "sold out" in page


def test_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn can be read back as items, each with a picture and the fields that filters use."""
    from clients.demo import catalogue

    monkeypatch.setattr(catalogue, "ALL", ALL[:3])

    products = list(catalogue.draw_catalogue(tmp_path))
    items = list(catalogue.read_items(tmp_path))

    assert [item.id for item in items] == [product.id for product in products]
    assert len({item.id for item in items}) == 3
    for item in items:
        assert set(catalogue.FIELDS) < set(item.payload)
        assert isinstance(item.image, Path)
        assert item.image.read_bytes().startswith(b"\xff\xd8\xff")
