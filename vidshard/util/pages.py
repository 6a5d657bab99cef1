"""HTML pages, made from templates."""

from __future__ import annotations

from typing import Any


def template(package: str, name: str) -> Any:
    """Return the template `name` in the folder `templates` of a package. It escapes values, and needs all of them."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
