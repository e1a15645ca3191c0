"""Small classifiers for tests of saliency, and one that has learned to look for a bright patch."""

from __future__ import annotations

import torch
from torch import Tensor

from scanprior import keyed
from scanprior.encoders import EncoderConfig, create_encoder
from scanprior.tasks.classify import Classifier, ClassifyConfig
from scanprior.tasks.heads import Kind

CLASSES = ["dark", "bright", "other"]
VIT = {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
DEIT = "deit_tiny_patch16_224"


def classifier(
    encoder: dict[str, object], size: int = 32, kind: Kind = "multiclass", classes: int = 3, **task: object
) -> Classifier:
    with keyed.seeded(3):
        made = create_encoder(EncoderConfig.model_validate(encoder), size=size, channels=1, seed=1)
        settings = ClassifyConfig.model_validate(task)
        model = Classifier(made, CLASSES[:classes], kind, settings, bank_images=9)
        torch.nn.init.normal_(model.head.linear.weight) if settings.head != "knn" else fill(model, size)
    return model.eval()


def fill(model: Classifier, size: int) -> None:
    pooled = model.pooling(model.encoder(images(9, size))).detach()
    model.head.fill(pooled, torch.eye(3)[torch.arange(9) % 3])


def images(count: int, size: int, seed: int = 5) -> Tensor:
    return torch.randn(count, 1, size, size, generator=keyed.generator(seed))


def patches(count: int, size: int, side: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise of which every other image holds a bright square; labels, and masks (B, size, size) of the square."""
    shown = 0.3 * images(count, size, seed)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    places = (keyed.uniform(keyed.key(seed, "place"), range(count), 2) * (size // side)).astype(int) * side
    for row, (y, x) in enumerate(places.tolist()):
        masks[row, y : y + side, x : x + side] = True
    labels = torch.arange(count) % 2
    shown[labels == 1] += 2 * masks[labels == 1][:, None].float()
    return shown, labels, masks


def trained(
    encoder: dict[str, object], size: int, side: int, steps: int, lr: float = 2e-3, **task: object
) -> Classifier:
    """Train a classifier to tell images with a bright square from those without."""
    model = classifier(encoder, size, classes=2, **task).train()
    shown, labels, _ = patches(128, size, side, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    for step in range(steps):
        rows = torch.from_numpy(keyed.permutation(keyed.key(7, "rows", step), 128)[:32])
        loss = model({"views": shown[None, rows], "target": labels[rows], "position": rows})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
