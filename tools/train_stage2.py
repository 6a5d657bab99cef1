"""Stage 2 in twenty lines: python tools/train_stage2.py TRAIN_SHARDS TEST_SHARDS, both of `stage1 extract`."""

import sys
from pathlib import Path

import torch

from stage1.data.loader import ClipLoader, ClipReader
from stage1.data.selection import map_labels, select
from stage1.data.transforms import ClipTransform, TransformConfig
from stage1.model.network import ModelConfig, Stage1Model

torch.manual_seed(0)
train, test = (ClipReader(Path(folder)) for folder in sys.argv[1:3])
classes = {name: number for number, name in enumerate(sorted(set(train.index.classes) - {"Normal"}))}
loaders = [
    ClipLoader(
        reader, rows=select(reader, classes=classes), labels=map_labels(reader, classes), batch_size=8, shuffle=True
    )
    for reader in (train, test)
]
model = Stage1Model(ModelConfig(dropout=0.2, statistics_share=0.0))
model.classifier = torch.nn.Linear(model.classifier.in_features, len(classes))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
transform = ClipTransform(TransformConfig())
for _ in range(int(sys.argv[3]) if len(sys.argv) > 3 else 20):
    for clips, labels, _ in loaders[0]:
        loss = torch.nn.functional.cross_entropy(model(transform(clips))[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()
with torch.inference_mode():
    right = [model(transform(clips))[0].argmax(1) == labels for clips, labels, _ in loaders[1]]
print(f"{int(torch.cat(right).sum())} of {len(torch.cat(right))} right, {len(classes)} classes: {', '.join(classes)}")
