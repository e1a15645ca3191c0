"""What an encoder is: image in, tokens, feature pyramid and pooled vector out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scanprior.encoders.adapters import Adapters, LoraConfig, attach, is_adapter
from scanprior.encoders.layers import blocks_of
from scanprior.errors import ConfigError

if TYPE_CHECKING:
    from scanprior.encoders.hub import Fetched
    from scanprior.encoders.weights import LoadReport

Trained = Literal["all", "norm", "lora", "none"]
"""Which weights of an encoder a training changes."""


class EncoderConfig(BaseModel):
    """Which network, with which weights."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        "vit_tiny_patch16_224",
        description="a name of `scanprior encoders`, or any timm model name; a tag after a dot is allowed",
    )
    pretrained: bool = Field(False, description="download the published weights (needs a network)")
    revision: str | None = Field(None, description="commit of the weights on the hub; empty = the newest")
    sha256: str | None = Field(
        None, pattern="^[0-9a-fA-F]{64}$", description="checksum that the downloaded weights must have"
    )
    weights: str | None = Field(
        None, description="local .safetensors, .pth or .pt file, or a run folder, to start from"
    )
    patch_size: int | None = Field(None, ge=1, description="patch side in pixels (ViT)")
    depth: int | None = Field(None, ge=1, description="number of blocks (ViT)")
    embed_dim: int | None = Field(None, ge=1, description="token width (ViT)")
    num_heads: int | None = Field(None, ge=1, description="attention heads (ViT)")
    output_block: int | None = Field(
        None,
        ge=1,
        description="take the output of this block, the first is 1, and leave out the later ones (ViT)",
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the last block")
    pool: Literal["auto", "cls", "mean"] = Field(
        "auto", description="pooled vector: auto = as the network was published, cls token, mean of tokens"
    )

    def overrides(self) -> dict[str, int]:
        """Return the ViT dimensions that were set."""
        keys = ("patch_size", "depth", "embed_dim", "num_heads")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}


@dataclass(frozen=True)
class Features:
    """What an encoder makes of a batch of B images.

    Attributes:
        tokens: (B, N, D), final and normalised, without class or register tokens, row by row.
        pyramid: (B, C_i, H_i, W_i) maps, fine to coarse. A ViT gives four blocks at one resolution.
        pooled: (B, dim).
    """

    tokens: Tensor
    pyramid: list[Tensor]
    pooled: Tensor


class Encoder(nn.Module):
    """Base of all encoders.

    Attributes:
        name: the model's name.
        dim: width of the pooled vector.
        token_dim: width of the tokens.
        size: side of the square input in pixels.
        channels: input channels.
        family: "vit" (all tokens at one resolution) or "conv" (a pyramid; also Swin and Hiera).
        stride: pixels of a token's side: the patch size or the total stride.
        num_prefix_tokens: class and register tokens before the patch tokens (0 in the conv family).
        depth: number of blocks of a ViT, number of stages else.
        net: the network, under whose names its weights are loaded and saved.
        fixed: whether nothing of it is trained.
        still: names of modules of the network that stay in evaluation mode while others are trained.
        adapters: the low-rank adapters that are in the network; None = none.
        left_out: what begins the names of weights that a file may hold beyond the network's, as blocks were left out.
        loaded: what became of the weights file it was made with; None without one.
        fetched: the file of the hub it was made with; None without one.
    """

    net: nn.Module

    name: str
    dim: int
    token_dim: int
    size: int
    channels: int
    family: Literal["vit", "conv"]
    stride: int
    num_prefix_tokens: int
    depth: int
    fixed = False
    still: tuple[str, ...] = ()
    adapters: Adapters | None = None
    left_out: tuple[str, ...] = ()
    loaded: LoadReport | None = None
    fetched: Fetched | None = None

    def cut_after(self, block: int) -> None:
        """Leave out the blocks after one of them, 1-based: its output becomes the encoder's, under the final norm.

        Raises:
            ConfigError: the network has no such block, or stages of different widths.
        """
        raise ConfigError(
            f"encoder.output_block: {self.name} has no row of equal blocks to stop after; remove the key"
        )

    def restrict(
        self, trained: Trained, from_block: int | None = None, lora: LoraConfig | None = None
    ) -> None:
        """Let a training change some of the weights.

        Args:
            trained: all; those of normalisation layers; low-rank adapters, which are put in; or none. A normalisation
                layer is one whose class is called so: PyTorch's and timm's, response norms among them.
            from_block: the first block, 1-based, that anything is trained of; None = all, and what is before them.
                Blocks are those of ``layers.blocks_of``.
            lora: of the adapters; None = the defaults.

        What stays as it is stays in evaluation mode where that is the whole network or whole modules before
        ``from_block``: no stochastic depth, and no running statistics that change. Beside adapters, layers with
        running statistics do.

        Raises:
            ConfigError: the network has no such block, or no weights of that kind.
        """
        before = set() if from_block is None else self._before(from_block)
        parts = [(name, part) for name, part in self.net.named_modules() if name]
        self.still = tuple(name for name, part in parts if _all_of(part, name, before))
        self.fixed = trained == "none"
        kinds = {"all": {name for name, _ in self.net.named_parameters()}, "norm": self._norms()}
        chosen = kinds.get(trained, set()) - before
        if trained == "norm" and not chosen:
            where = "" if from_block is None else f" from block {from_block} on"
            raise ConfigError(
                f"adapt.train: norm: {self.name} has no normalisation layers with weights{where}; use all or none"
            )
        for name, weight in self.net.named_parameters():
            if name not in chosen:  # the others as the network has them: it may have fixed ones of its own
                weight.requires_grad_(False)
        if trained == "lora":
            measuring = (name for name, part in parts if getattr(part, "running_mean", None) is not None)
            self.still += tuple(measuring)
            self.adapters = attach(self, lora or LoraConfig(), before)

    def _before(self, block: int) -> set[str]:
        """Return the names of the network's parameters before a block, 1-based."""
        if not hasattr(self.net, "group_matcher"):
            raise ConfigError(
                f"adapt.from_block: {self.name} does not say what its blocks are; remove the key"
            )
        blocks = blocks_of(self.net)
        last = max(blocks.values())
        if block > last:
            raise ConfigError(f"adapt.from_block: {self.name} has {last} blocks, and {block} is wanted")
        return {name for name, number in blocks.items() if number < block}

    def _norms(self) -> set[str]:
        """Return the names of the parameters of the network's normalisation layers."""
        layers = [(n, part) for n, part in self.net.named_modules() if "norm" in type(part).__name__.lower()]
        return {
            f"{n}.{own}".lstrip(".") for n, part in layers for own, _ in part.named_parameters(recurse=False)
        }

    def merge_adapters(self) -> None:
        """Add low-rank adapters, if there are any, to the weights that they adapt, and take them out."""
        if self.adapters is not None:
            self.adapters.merge(self.net)
            self.adapters = None

    def count_parameters(self) -> tuple[int, int]:
        """Return how many numbers a training changes, and how many the encoder has; adapters count to the first."""
        weights = list(self.named_parameters())
        return (
            sum(weight.numel() for _, weight in weights if weight.requires_grad),
            sum(weight.numel() for name, weight in weights if not is_adapter(name)),
        )

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode, but for what stays in evaluation mode."""
        super().train(mode and not self.fixed)
        for name in self.still:
            self.net.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor) -> Features:
        """Encode images (B, channels, size, size)."""
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Features:
        """Encode images (B, channels, size, size)."""
        features: Features = super().__call__(images)
        return features


class PyramidEncoder(Encoder):
    """An encoder whose tokens and pooled vector come out of one last map, so that what it says can be traced to it."""

    family: Literal["vit", "conv"] = "conv"

    def forward(self, images: Tensor) -> Features:
        """Encode images (B, channels, H, W)."""
        return self.features_of(*self.final_map(images))

    def final_map(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the last map in the network's own layout, and the maps (B, C_i, H_i, W_i), fine to coarse."""
        raise NotImplementedError

    def features_of(self, final: Tensor, maps: list[Tensor]) -> Features:
        """Return the features of what ``final_map`` gives; of ``final`` alone, but for the pyramid."""
        raise NotImplementedError

    def tokens_of(self, final: Tensor) -> Tensor:
        """View the last map as tokens (B, N, D), row by row."""
        raise NotImplementedError


def _all_of(part: nn.Module, name: str, names: set[str]) -> bool:
    """Return whether a module, by its name in a network, has parameters and all of them are among some names."""
    own = [f"{name}.{below}" for below, _ in part.named_parameters()]
    return bool(own) and names.issuperset(own)


def pyramid_blocks(depth: int) -> list[int]:
    """Return four evenly spaced blocks, 0-based, the last among them: 3, 6, 9, 12 of 12 (as UNETR taps them)."""
    return [-(-(i + 1) * depth // 4) - 1 for i in range(4)]


def blocks_kept(encoder: Encoder, wanted: int) -> int:
    """Check a wanted number of blocks against those there are.

    Raises:
        ConfigError: there are fewer.
    """
    if wanted > encoder.depth:
        raise ConfigError(
            f"encoder.output_block: {encoder.name} has {encoder.depth} blocks, and {wanted} is wanted"
        )
    return wanted


def fitting_sizes(size: int, divisor: int) -> str:
    """Name the sizes next to a size that a divisor divides."""
    below = size // divisor * divisor
    return " or ".join(str(fit) for fit in (below, below + divisor) if fit)
