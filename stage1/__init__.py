"""Tell normal from crime in clips read from shards, with 3D convolutions and attention over the frames."""

from typing import Any

__all__ = ["load_attention_data"]


def __getattr__(name: str) -> Any:
    """What the package offers, loaded when it is asked for: importing it alone must not load torch."""
    if name == "load_attention_data":
        from stage1.inference.attention_data import load_attention_data

        return load_attention_data
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
