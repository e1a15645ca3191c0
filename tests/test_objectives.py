"""One contract that every objective passes (a new one is a line of CASES), then each one's own facts."""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reference_group_mask import reference_corrupt
from scanprior import objectives
from scanprior.encoders import EncoderConfig, create_encoder, sample_positions
from scanprior.errors import ConfigError
from scanprior.masking import Corruption
from scanprior.objectives.base import Batch, view_positions
from scanprior.objectives.contrastive import cross_view_loss
from scanprior.objectives.mae import take
from scanprior.objectives.reconstruction import head_blocks, patch_statistics


class ToyConfig(objectives.ObjectiveConfig):
    noise: float = 0.5


@objectives.register("toy")
class ToyDenoise(objectives.Objective):
    """What a new method costs: this class and one line below."""

    Config: ClassVar = ToyConfig

    def __init__(self, encoder, config, *, seed):
        super().__init__(encoder, config, seed=seed)
        self.head = nn.Linear(encoder.dim, encoder.channels)
        nn.init.constant_(self.head.weight, 0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch):
        images = batch["views"][0]
        with sample_positions(batch["position"]):
            pooled = self.encoder(images + self.config.noise).pooled
        loss = (self.head(pooled).float() - images.mean((2, 3))).square().mean()
        return {"loss": loss, "embedding_std": objectives.embedding_std(pooled)}

    def preview(self, batch):
        images = batch["views"][0]
        return dict.fromkeys(("input", "corrupted", "rebuilt", "raw"), images)


VIT = EncoderConfig(patch_size=4, depth=3, embed_dim=48, num_heads=3, drop_path=0.1)
SMALL_HEAD = {"head_hidden": 64, "head_out": 16}
SMALL_DECODER = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4}
SMALL_CONV = {"decoder_dim": 32, "guidance": {"warmup": 0.0, "loss_weight": 0.5}}
ATTO = EncoderConfig(name="convnext_atto", drop_path=0.1)
ATTO_2 = EncoderConfig(name="convnextv2_atto")
PATCHES = {"align": "patch", "target_norm": "patch", "kinds": ("noise", "zeros", "replace")}

CASES = [
    # objective, its settings, encoder, size, channels
    ("gmml", {}, VIT, 32, 1),
    ("gmml", {"views": 1, **PATCHES}, VIT, 32, 3),
    ("gmml", {"alien_replace": 0, "hidden_only": False}, EncoderConfig(name="convnext_atto"), 37, 1),
    ("sit", SMALL_HEAD, VIT, 32, 1),
    ("sit", {**SMALL_HEAD, "export": "teacher"}, VIT.model_copy(update={"patch_size": 7}), 28, 3),
    ("mae", SMALL_DECODER, VIT, 32, 1),
    ("mae", {**SMALL_DECODER, "decoder_position": "learned", "target_norm": "none"}, VIT, 36, 3),
    ("masked_convnet", SMALL_CONV, ATTO, 64, 1),
    (
        "masked_convnet",
        {**SMALL_CONV, "decoder": "unet", "path": "dense", "target_norm": "none"},
        ATTO_2,
        64,
        3,
    ),
    ("toy", {}, VIT, 32, 1),
]
contract = pytest.mark.parametrize(
    ("name", "settings", "encoder", "size", "channels"), CASES, ids=[f"{c[0]}-{c[3]}x{c[4]}" for c in CASES]
)


def make(name, settings, encoder=VIT, size=32, channels=1, seed=0):
    kind = objectives.get(name)
    made = create_encoder(encoder, size=size, channels=channels, seed=seed)
    return kind(made, kind.Config(**settings), seed=seed)


def batch_for(size=32, channels=1, count=8, views=2, start=100) -> Batch:
    """Smooth blobs, so that there is something to learn."""
    source = torch.Generator().manual_seed(size + channels)
    coarse = torch.randn(views * count, channels, 4, 4, generator=source)
    images = F.interpolate(coarse, (size, size), mode="bicubic").unflatten(0, (views, count))
    return {"views": images, "donors": images.roll(1, 1), "position": torch.arange(count) + start}


@contract
def test_loss_is_finite_and_gradients_reach_the_encoder(name, settings, encoder, size, channels):
    objective = make(name, settings, encoder, size, channels).train()
    result = objective(batch_for(size, channels))
    assert all(value.ndim == 0 and value.isfinite() for value in result.values())
    assert 0 <= result["embedding_std"] < 2
    assert not any(value.requires_grad for key, value in result.items() if key != "loss")
    result["loss"].backward()
    first = next(p for p in objective.encoder.parameters() if p.ndim == 4)
    assert first.grad is not None and first.grad.abs().sum() > 0
    without = [key for key, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    # networks that normalise after pooling do not use that norm when their final map is read
    assert all(key.startswith("encoder.net.head.norm") for key in without)


@contract
def test_same_seed_same_result(name, settings, encoder, size, channels):
    results = []
    for noise in (1, 2):  # the global generator has no say
        torch.manual_seed(noise)
        objective = make(name, settings, encoder, size, channels, seed=5).train()
        torch.manual_seed(noise)
        results.append(objective(batch_for(size, channels)))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@contract
def test_loss_falls_on_eight_images(name, settings, encoder, size, channels):
    objective = make(name, settings, encoder, size, channels).train()
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(30):
        loss = objective(batch_for(size, channels, start=step * 8))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.after_step(step, 30)
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:3])


@contract
def test_saved_and_loaded_is_equal(name, settings, encoder, size, channels, tmp_path):
    one = make(name, settings, encoder, size, channels, seed=1).train()
    one.after_step(0, 10)
    save_file(one.state_dict(), tmp_path / "state.safetensors")
    other = make(name, settings, encoder, size, channels, seed=2)
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    batch = batch_for(size, channels)
    other.seed = one.seed
    one.eval(), other.eval()
    assert torch.equal(one(batch)["loss"], other(batch)["loss"])


@contract
def test_bfloat16_autocast(name, settings, encoder, size, channels):
    objective = make(name, settings, encoder, size, channels).train()
    batch = batch_for(size, channels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch)["loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    torch.testing.assert_close(loss, objective(batch)["loss"], rtol=0.1, atol=0.02)


@contract
def test_preview(name, settings, encoder, size, channels):
    objective = make(name, settings, encoder, size, channels).train()
    before = copy.deepcopy(objective.state_dict())
    batch = batch_for(size, channels)
    shown = objective.preview(batch)
    assert {key: value.shape for key, value in shown.items()} == dict.fromkeys(
        ("input", "corrupted", "rebuilt", "raw"), batch["views"][0].shape
    )
    assert torch.equal(shown["input"], batch["views"][0]) and objective.training
    hidden = shown["corrupted"] != shown["input"]
    if name != "toy":
        assert 0.05 < hidden.float().mean() < 0.9
    kept = ~hidden.any(1, keepdim=True).expand_as(hidden) & (shown["rebuilt"] != shown["raw"])
    assert torch.equal(shown["rebuilt"][kept], shown["input"][kept])
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())


def test_register():
    assert {"gmml", "mae", "sit", "toy"} <= set(objectives.names())
    with pytest.raises(ConfigError, match="did you mean gmml"):
        objectives.get("gmm1")
    with pytest.raises(ValidationError, match="mask_ration"):
        objectives.get("mae").Config(mask_ration=0.5)
    with pytest.raises(ValueError, match="two objectives"):
        objectives.register("toy")(type("Other", (objectives.Objective,), {}))
    for name in ("gmml", "mae", "sit"):
        kind = objectives.get(name)
        assert kind.summary and all("." in key for key in kind.defaults)
        assert all(field.description for field in kind.Config.model_fields.values())


def test_embedding_std_measures_collapse():
    spread = torch.randn(2000, 64)
    assert abs(objectives.embedding_std(spread) - 1) < 0.02
    assert objectives.embedding_std(torch.ones(10, 64)) < 1e-6
    expected = (spread / spread.norm(dim=1, keepdim=True)).numpy().std(axis=0).mean() * 8
    assert float(objectives.embedding_std(spread)) == pytest.approx(expected, rel=1e-5)


# ---- GMML


@pytest.mark.parametrize("settings", [{}, {"views": 1, **PATCHES}, {"hidden_only": False}])
def test_gmml_loss_equals_an_image_by_image_computation(settings):
    objective = make("gmml", settings, VIT, 32, 3, seed=3).eval()
    batch = batch_for(32, 3)
    result = objective(batch)
    views = objective.views
    config = Corruption(kinds=objective.config.kinds, align=4 if settings.get("align") == "patch" else 1)
    total, count = 0.0, 0
    for v in range(views):
        for b in range(8):
            clean = batch["views"][v, b]
            position = np.array([(100 + b) * views + v])
            corrupted, mask = reference_corrupt(clean[None], batch["donors"][v, b][None], config, 3, position)
            tokens = objective.encoder.block_outputs(corrupted, [0, 1, 2])
            blocks = [tokens[i] for i in objective.blocks]
            mean = objective.encoder.net.norm(sum(blocks) / len(blocks))[:, 1:]
            output = objective.head(mean, (32, 32))[0]
            for row in range(0, 32, 4):
                for column in range(0, 32, 4):
                    here = (slice(None), slice(row, row + 4), slice(column, column + 4))
                    target = clean[here]
                    if objective.config.target_norm == "patch":
                        target = (target - target.mean()) / (target.var(correction=0) + 1e-6).sqrt()
                    error = (output[here] - target).abs().mean(0)
                    chosen = mask[0][here[1:]] if objective.config.hidden_only else torch.ones(4, 4).bool()
                    total += error[chosen].double().sum().item()
                    count += int(chosen.sum())
    assert int(result["weight"]) == count
    assert result["loss"].item() == pytest.approx(total / count, abs=1e-6)


def test_gmml_gives_no_gradient_to_pixels_that_were_not_corrupted():
    objective = make("gmml", {})
    batch = batch_for()
    clean, _, mask, _ = objective.corrupt_views(batch, 2)
    output = torch.randn_like(clean, requires_grad=True)
    objective.head.forward = lambda tokens, size: output
    error, count = objective.reconstruction(torch.empty(0), clean, mask)
    (error / count).backward()
    assert torch.equal(output.grad[:, 0] != 0, mask)


def test_gmml_parts_of_a_batch_weighted_give_the_whole():
    objective = make("gmml", {}).eval()
    batch = batch_for()
    whole = objective(batch)
    halves = [
        objective({key: v[s] if key == "position" else v[:, s] for key, v in batch.items()})
        for s in (slice(0, 3), slice(3, 8))
    ]
    weighted = sum(half["loss"] * half["weight"] for half in halves) / sum(half["weight"] for half in halves)
    torch.testing.assert_close(weighted, whole["loss"])


def test_gmml_defaults_are_the_published_ones():
    kind = objectives.get("gmml")
    config = kind.Config()
    assert (config.kinds, config.max_replace, config.alien_replace, config.align) == (
        ("noise",),
        0.75,
        0.3,
        "pixel",
    )
    assert [kind.defaults[f"engine.{key}"] for key in ("weight_decay", "weight_decay_end", "clip")] == [
        0.04,
        0.4,
        3,
    ]
    assert head_blocks("auto", 12) == head_blocks("6-8-10-12", 12) == [5, 7, 9, 11]
    assert head_blocks("auto", 6) == [2, 3, 4, 5] and head_blocks("auto", 1) == [0]
    for wrong in ("0-3", "13", "a"):
        with pytest.raises(ConfigError, match="head_blocks"):
            head_blocks(wrong, 12)


def test_a_batch_without_donors_is_refused():
    batch = batch_for()
    del batch["donors"]
    with pytest.raises(ValueError, match="donors"):
        make("gmml", {})(batch)


def test_patch_statistics_refuse_what_patches_do_not_divide():
    with pytest.raises(ConfigError, match="target_norm"):
        patch_statistics(torch.zeros(1, 1, 37, 37), 32)


# ---- MAE


def test_mae_encoder_with_all_patches_is_timms():
    objective = make("mae", SMALL_DECODER).eval()
    images = batch_for()["views"][0]
    everything = torch.arange(64).expand(8, -1)
    encoder = objective.encoder
    latent = objective.encode(encoder.patchify(images), everything, torch.arange(8))
    torch.testing.assert_close(encoder.normalize(latent), encoder.net.forward_features(images))
    backwards = objective.encode(encoder.patchify(images), everything.flip(1), torch.arange(8))
    torch.testing.assert_close(backwards[:, 1:].flip(1), latent[:, 1:])


@pytest.mark.parametrize("guidance", [{}, {"beta": 1.0, "warmup": 0.0, "loss_weight": 0.7}])
def test_mae_loss_equals_an_image_by_image_computation(guidance):
    objective = make("mae", {**SMALL_DECODER, "guidance": guidance}, channels=3, seed=2).eval()
    batch = batch_for(channels=3)
    images, encoder = batch["views"][0], objective.encoder
    mask, scores = objective.hide(images, objective.encoder.stride, batch["position"])
    losses, counts = [], []
    for b in range(8):
        x = encoder.net._pos_embed(encoder.net.patch_embed(images[b : b + 1]))
        keep = mask.ids_keep[b]
        x = encoder.net.norm(encoder.net.blocks(torch.cat([x[:, :1], x[:, 1:][:, keep]], 1)))
        decoder = objective.decoder
        y = decoder.embed(x)
        full = decoder.mask_token.repeat(1, 65, 1)
        full[:, 0] = y[:, 0]
        full[:, 1 + keep] = y[:, 1:]
        full[:, 1:] += decoder.position
        predicted = decoder.predict(decoder.norm(decoder.blocks(full)))[0, 1:]
        for n in mask.mask[b].nonzero().flatten().tolist():
            row, column = 4 * (n // 8), 4 * (n % 8)
            target = images[b, :, row : row + 4, column : column + 4].flatten()
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            losses.append(float((predicted[n] - target).detach().square().mean()))
            counts.append(max(0.0, 1 + 0.7 * float(scores[b, n])) if guidance else 1.0)
    assert len(losses) == 8 * 48
    out = objective(batch)
    assert out["loss"].item() == pytest.approx(np.average(losses, weights=counts), abs=1e-5)
    assert ("weight" in out) == bool(guidance) and (
        not guidance or out["weight"].item() == pytest.approx(sum(counts))
    )


def test_mae_guidance_warms_up_with_the_training():
    objective = make("mae", {**SMALL_DECODER, "guidance": {"beta": 3.0, "mix": 0.0, "warmup": 0.5}}).eval()
    plain = make("mae", SMALL_DECODER).eval()
    batch = batch_for()
    images = batch["views"][0]
    masks = []
    for step in (None, 9, 49, 99):
        if step is not None:
            objective.after_step(step, 100)
        masks.append(objective.hide(images, objective.encoder.stride, batch["position"]).mask.mask)
    assert torch.equal(masks[0], plain.hide(images, plain.encoder.stride, batch["position"]).mask.mask)
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
    assert torch.equal(masks[2], masks[3]), "the strength stays once it is reached"
    assert "progress" in objective.state_dict(), "a resumed training goes on with the same strength"


def test_mae_never_sees_hidden_pixels():
    objective = make("mae", {**SMALL_DECODER, "target_norm": "none"}).eval()
    batch = batch_for()
    shown = objective.preview(batch)
    other = {**batch, "views": shown["corrupted"][None]}
    assert torch.equal(objective.preview(other)["raw"], shown["raw"])


def test_mae_needs_a_plain_vit():
    with pytest.raises(ConfigError, match="plain ViT"):
        make("mae", {}, EncoderConfig(name="resnet18"))
    with pytest.raises(ConfigError, match="needs a plain ViT and vit_small_patch16_dinov3 is a Eva"):
        make("mae", {}, EncoderConfig(name="vit_small_patch16_dinov3", depth=1))
    with pytest.raises(ConfigError, match="decoder_heads"):
        make("mae", {"decoder_dim": 32, "decoder_heads": 5})


def test_take():
    tokens = torch.arange(12.0).view(1, 6, 2)
    assert take(tokens, torch.tensor([[4, 0]]))[0].tolist() == [[8, 9], [0, 1]]


# ---- SiT


def test_cross_view_loss_equals_its_definition():
    queries = F.normalize(torch.randn(2, 6, 5), dim=2)
    keys = F.normalize(torch.randn(2, 6, 5), dim=2)
    total = 0.0
    for v in (0, 1):
        for i in range(6):
            scores = [np.exp(float(queries[v, i] @ keys[1 - v, j]) / 0.2) for j in range(6)]
            total -= np.log(scores[i] / sum(scores)) / 6
    assert float(cross_view_loss(queries, keys, 0.2)) == pytest.approx(2 * 0.2 * total, rel=1e-5)


def test_sit_teacher_follows_by_a_cosine_momentum_and_is_exported_on_request():
    objective = make("sit", {**SMALL_HEAD, "export": "teacher"}).train()
    assert not any(p.requires_grad for p in objective.teacher.parameters())
    assert not objective.teacher["encoder"].training and objective.teacher["projection"].training
    assert objective.exported_encoder() is objective.teacher["encoder"]
    student = objective.encoder.net.pos_embed
    start = student.detach().clone()
    with torch.no_grad():
        student += 1
    follower = objective.teacher["encoder"].net.pos_embed
    objective.after_step(0, 100)
    torch.testing.assert_close(follower, start + 0.004)
    objective.after_step(50, 100)
    torch.testing.assert_close(follower, start + 0.004 + 0.996 * 0.002)
    objective.after_step(100, 100)
    torch.testing.assert_close(follower, start + 0.004 + 0.996 * 0.002)
    assert make("sit", SMALL_HEAD).exported_encoder().training


def _sit_gradients(part: slice) -> tuple[float, dict[str, Tensor]]:
    objective = make("sit", SMALL_HEAD, seed=3).train()
    batch = {key: v[part] if key == "position" else v[:, part] for key, v in batch_for().items()}
    loss = objective(batch)["loss"]
    loss.backward()
    return loss.item(), {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}


def _sit_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    loss, gradients = _sit_gradients(slice(4 * rank, 4 * rank + 4))
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient /= 2
    loss = torch.tensor(loss)
    dist.all_reduce(loss)
    if rank == 0:
        save_file({"loss": loss / 2, **gradients}, f"{folder}/gradients.safetensors")
    dist.destroy_process_group()


def test_sit_on_two_processes_has_the_gradient_of_one(tmp_path):
    torch.multiprocessing.spawn(_sit_worker, (str(tmp_path),), nprocs=2)
    found = load_file(tmp_path / "gradients.safetensors")
    loss, expected = _sit_gradients(slice(0, 8))
    assert found.pop("loss").item() == pytest.approx(loss, rel=1e-5)
    assert set(expected) == set(found)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-5)


def test_view_positions_are_unique_and_follow_the_flattened_views():
    assert view_positions(torch.tensor([5, 9]), 2).tolist() == [10, 18, 11, 19]
