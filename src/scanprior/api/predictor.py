"""What predicts classes: one classifier with its preprocessing, or several that are combined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scanprior.api.embeddings import Embedder, Embeddings, Rows
from scanprior.api.features import StoredFeatures
from scanprior.api.sources import Images
from scanprior.data.fitting import Pixels
from scanprior.data.transforms import Augmentation, Form, Preprocessing, augment, to_input
from scanprior.errors import ConfigError
from scanprior.evaluation import Combination
from scanprior.tasks.classify import Classifier

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """One of the classifiers that predict together, or the only one.

    Attributes:
        model: the classifier.
        preprocessing: what it expects of an image.
        name: what it is called among others.
        features: those that are kept of its frozen encoder.
        augmentation: how the images varied that it was trained on; None = not known.
    """

    model: Classifier
    preprocessing: Preprocessing
    name: str = ""
    features: StoredFeatures | None = None
    augmentation: Augmentation | None = None


@dataclass(frozen=True)
class Answers(Embeddings):
    """What the members say of B images, and what their encoders make of them.

    Attributes:
        members: (K, B, classes) probabilities.
    """

    members: Floats


class Predictor(Embedder):
    """One classifier, or an ensemble of several; whoever predicts with it need not know.

    Args:
        members: classifiers of the same classes, in any order.
        combination: how their probabilities become one; None = there is one.
        classes: names, in the order wanted; None = as the first member has them.

    Attributes:
        classes: names, in the order of the columns.
        kind: one class an image, or every finding by itself.
        ordered: whether the classes are in an order, from least to most.
    """

    def __init__(
        self,
        members: Sequence[Member],
        combination: Combination | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__([(member.model.encoder, member.preprocessing) for member in members])
        self.members, self.combination = list(members), combination
        first = self.members[0].model
        self.classes, self.kind = list(classes or first.classes), first.kind
        self.ordered = first.ordered and self.classes == first.classes
        self._orders = [[m.model.classes.index(name) for name in self.classes] for m in self.members]

    @classmethod
    def of(
        cls, model: Classifier, preprocessing: Preprocessing, features: StoredFeatures | None = None
    ) -> Predictor:
        """Return a single classifier as a predictor, with the kept features of its frozen encoder if it has any."""
        return cls([Member(model, preprocessing, features=features)])

    def of_members(self, pixels: Mapping[Form, Pixels]) -> Floats:
        """Return the probabilities (K, B, classes) of each member; ``pixels`` as for ``answers``."""
        made = []
        for member, order in zip(self.members, self._orders, strict=True):
            images = to_input(torch.from_numpy(pixels[member.preprocessing.form]), member.preprocessing)
            made.append(member.model.predict([images])[:, order])
        return np.stack(made).astype(np.float64)

    def answers(self, pixels: Mapping[Form, Pixels], views: int = 0) -> Answers:
        """Return what each member says of images, and the features it says it by.

        Args:
            pixels: in every form, the same images (B, C, S, S) uint8 or uint16.
            views: so many augmented views of every image are predicted too, and the probabilities averaged. The
                views are drawn from the augmentation of the training and are the same for all images.
        """
        made, seen = [], []
        for member, order in zip(self.members, self._orders, strict=True):
            stored, pre = pixels[member.preprocessing.form], member.preprocessing
            found, features = member.model.answer(to_input(torch.from_numpy(stored), pre))
            whole = found.astype(np.float64)
            for view in range(1, views + 1):
                whole += member.model.predict([_view(stored, view, member)])
            made.append(whole[:, order] / (views + 1))
            seen.append(self.embedded(features))
        together = Embeddings.joined(seen, axis=1)
        return Answers(together.pooled, together.descriptors, np.stack(made))

    def embeddings_of_stored(self, images: Images, rows: Rows, batch_size: int = 64) -> Embeddings:
        """Return what the encoders make of the stored images at ``rows``; what is kept of that is read."""
        kept = self.members[0].features
        if len(self.members) > 1 or kept is None or not kept.descriptors:
            return super().embeddings_of_stored(images, rows, batch_size)
        kept.ensure(rows)
        return kept.embeddings(rows)

    def check_views(self, views: int) -> None:
        """See that there are views to predict.

        Raises:
            ConfigError: a negative number, or a member that was trained without augmentation.
        """
        if views < 0:
            raise ConfigError(f"--tta {views}: the number of further views cannot be negative")
        for member in self.members if views else []:
            if member.augmentation is None or member.augmentation.is_off:
                whose = f"{member.name}: " if member.name else ""
                raise ConfigError(
                    f"--tta {views}: {whose}the run was trained without augmentation (augment.preset: none), so every "
                    "view would be the image itself; leave --tta out"
                )

    def combined(self, members: Floats) -> Floats:
        """Return the probabilities (N, classes) of the whole from those (K, N, classes) of the members."""
        return members[0] if self.combination is None else self.combination(members, self.kind)

    @property
    def reads_features(self) -> bool:
        """Whether stored images are predicted from kept features, so that no encoder sees them."""
        return self.members[0].features is not None

    def stored_answers(self, images: Images, rows: Rows, batch_size: int) -> Iterator[Answers]:
        """Yield what ``answers`` gives for the stored images at ``rows``, ``batch_size`` at a time."""
        for start in range(0, len(rows), batch_size):
            yield self.answers(self.stored(images, rows[start : start + batch_size]))

    def of_stored(self, images: Images, rows: Rows, batch_size: int) -> Floats:
        """Return the probabilities (K, N, classes) that the members give the stored images at ``rows``."""
        kept = self.members[0].features
        if kept is not None:  # of a single classifier: ``of``
            kept.ensure(rows)
            found = self.members[0].model.predict_features(kept.batches(rows, batch_size))
            return found[None, :, self._orders[0]].astype(np.float64)
        made = [np.zeros((len(self.members), 0, len(self.classes)))]
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            made.append(self.of_members(self.stored(images, part)))
        return np.concatenate(made, axis=1)


def _view(stored: Pixels, view: int, member: Member) -> Tensor:
    """Return view number ``view`` of stored images, the same for all of them: no image's depends on its place."""
    assert member.augmentation is not None
    places = np.full(len(stored), view, dtype=np.int64)
    return augment(
        stored, member.augmentation, member.preprocessing, seed=0, purpose="test-time views", positions=places
    )
