"""How experiments print intervals (`mean`, `low`, `high`): as cells of a table, and as what a page
may claim. Their metrics are by name what each is called and its format."""

from collections.abc import Mapping
from typing import Any

from dpo.core.stats import said

Metrics = Mapping[str, tuple[str, str]]


def cells(values: Mapping[str, Any], metrics: Metrics, *, difference: bool = False) -> list[str]:
    """Each metric with its interval; of a difference with a sign."""
    forms = (
        (name, f"+{form.lstrip('+')}" if difference else form)
        for name, (_, form) in metrics.items()
    )
    return [said(values[name], form) for name, form in forms]


def claims(of: str, values: Mapping[str, Any], metrics: Metrics) -> dict[str, float]:
    """The numbers of those metrics that are there, by what they are, rounded as they are printed;
    shares in percent."""
    found = {}
    for name, (_, form) in metrics.items():
        for end, value in values.get(name, {}).items():
            found[f"{of}, {name}, {end}"] = float(format(value, form).rstrip("%"))
    return found
