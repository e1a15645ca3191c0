"""Official weights from the Hugging Face hub, pinned: which commit, and which bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from scanprior.catalogue import Listed
from scanprior.errors import WeightsError


@dataclass(frozen=True)
class Fetched:
    """A file of the hub.

    Attributes:
        path: where it lies on this machine.
        revision: commit of its repository, 40 hexadecimal digits.
        sha256: of its bytes.
    """

    path: Path
    revision: str
    sha256: str


def fetch(entry: Listed, revision: str | None = None, sha256: str | None = None) -> Fetched:
    """Return the official file of a listed encoder, downloaded where it is not here yet.

    Args:
        entry: which encoder.
        revision: commit, branch or tag of its repository; None = the newest. The commit that it stood for is returned,
            so that a run can say it and be repeated from the same bytes.
        sha256: what the file must have; None = not checked.

    Raises:
        WeightsError: the file is not on the hub, cannot be had, or is another than the wanted one.
    """
    if not entry.hub:
        raise WeightsError(
            f"encoder.pretrained: {entry.name} is not on the hub; get {entry.file} from the {entry.source} and give it "
            "as encoder.weights"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = Path(hf_hub_download(entry.hub, entry.file, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        at = f" at {revision}" if revision else ""
        raise WeightsError(
            f"encoder.pretrained: {entry.file} of {entry.hub}{at} cannot be had ({reason}); check the network and your "
            "access, or give a local file as encoder.weights"
        ) from error
    found = _sha256(path)
    if sha256 is not None and found != sha256.lower():
        raise WeightsError(
            f"encoder.sha256: {path} has {found} and {sha256} is wanted; it is another version of the file: set "
            "encoder.revision to its commit, or correct the checksum"
        )
    return Fetched(path, path.parent.name, found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
