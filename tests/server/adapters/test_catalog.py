"""Names of adapters, and what expressions over them mean."""

import pytest

from roadkit.errors import AdapterError, ExpressionError, UnknownAdapter
from roadkit.server.adapters.catalog import Catalog, Entry, Factor


def catalog(*entries: Entry) -> Catalog:
    made = Catalog(base="base", longest_name=128, longest_expression=100)
    for entry in entries:
        made.put(entry)
    return made


def entry(name: str, tenant: str = "acme", **options) -> Entry:
    return Entry(name, tenant, f"/{name}", "upload", **options)


@pytest.mark.parametrize("name", ["a" + ":" * 120, "a/" * 60 + "a"])
def test_names_fit_a_file_system(name):
    with pytest.raises(AdapterError, match="too many"):
        catalog().check_name(name)


def test_an_expression_means_what_its_tenant_sees():
    own, public, foreign = entry("formal"), entry("german", "zeta", public=True), entry("secret", "zeta")
    known = catalog(own, public, foreign)
    assert known.parse("acme", "base") == []
    assert known.parse("acme", "formal*0.5 + german") == [Factor(own, strength=0.5), Factor(public)]
    assert known.parse("acme", "formal:one") == [Factor(own, "one")]
    with pytest.raises(UnknownAdapter, match="no adapter 'secret'"):
        known.parse("acme", "secret")
    with pytest.raises(ExpressionError, match="model has 101 characters, at most 100 are allowed"):
        known.parse("acme", "x" * 101)


def test_equal_names_of_one_expression_are_equal_versions(monkeypatch):
    """An upload between two look-ups does not put two versions under one name."""
    known, resolve, version = catalog(entry("formal", version="0")), Catalog.resolve, iter(range(1, 100))

    def replaced(self, tenant, name):
        self.put(entry("formal", version=str(next(version))))
        return resolve(self, tenant, name)

    monkeypatch.setattr(Catalog, "resolve", replaced)
    one, two = known.parse("acme", "formal + formal*0.5")
    assert one.entry == two.entry
