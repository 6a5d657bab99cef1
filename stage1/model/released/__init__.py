"""A small checkpoint to try `stage1 infer` with; README.md beside it says what it can do."""

from __future__ import annotations

from pathlib import Path

PATH = Path(__file__).parent / "fight.pt"
WARNING = "the released model only knows fights of 36 recordings; it is there to try, not for decisions about people"
