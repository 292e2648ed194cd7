"""Rows of results, and their figures as the pages write them."""


def pick(rows, **fields):
    """Finds the one row whose fields have these values."""
    found = [row for row in rows if all(row.get(k) == v for k, v in fields.items())]
    assert len(found) == 1, (fields, found)
    return found[0]


def span(values, digits=1):
    low, high = (f"{f(values):.{digits}f}" for f in (min, max))
    return low if low == high else f"{low} to {high}"
