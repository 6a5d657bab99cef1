"""Note on how far attention can be trusted: what `stage1 explain` found for the model of a run, if it was run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from stage1.common import schema
from stage1.inference.outputs import OutputFiles
from stage1.metrics.clips import interval_text

_NOT_LEARNT = ("mean", "max")  # pooling without attention


def attention_note(files: OutputFiles) -> str:
    """Return the note for the pictures and the report of a run, from explanation/explanation.json in its folder."""
    run = json.loads(files.run.read_bytes())
    model = run.get("checkpoint")
    if not model:
        return "It was not tested whether attention of these models follows the crime."
    if files.explanation.is_file():
        again = f"run `{explain_command(files, run)}` again"
        found = schema.read_json(files.explanation, "explanation", again=again)
        if found.get("checkpoint_sha256") == model["sha256"]:
            return _tested(found)
    return (
        "It was not tested whether attention of this model follows the crime. To test it on clips with labels: "
        f"{explain_command(files, run)}"
    )


def explain_command(files: OutputFiles, run: Mapping[str, Any]) -> str:
    """Return the command that tests attention of the model of a run, where the run's pictures look for the result."""
    words = ["--shards", run["shards"]["path"] or "shards/Test", "--checkpoint", run["checkpoint"]["path"]]
    return shlex.join(["stage1", "explain", *words, "--out", str(files.explanation.parent)])


def _tested(found: Mapping[str, Any]) -> str:
    if found["pooling"] in _NOT_LEARNT:
        return f"This model pools frames by their {found['pooling']}: its attention was not learnt and means nothing."
    splices, correlation = found["splices"], found.get("correlation_with_untrained")
    parts = []
    if splices is not None:
        crime = splices["frame_auc"][0]
        parts.append(
            f"in composites, its AUC for the crime's frames is {interval_text(crime['attention'], 2)} (motion alone "
            f"{interval_text(crime['motion'], 2)}, chance 0.5)"
        )
    else:
        parts.append("composites could not be tested, as no recording has clips of both classes")
    if correlation is not None:
        parts.append(f"its correlation with attention before training is {correlation:.2f}")
    gaps = {name: interval_text(gap, 2) for name, gap in found["deletion"]["gap"].items()}
    parts.append(
        f"freezing the frames that it weighs most lowers the log-odds of crime by {gaps['attention']} more than random "
        f"frames do (those of highest saliency: {gaps['saliency']})"
    )
    return f"Attention of this model was tested: {'; '.join(parts)}."
