"""The segmenter in PyTorch: encoders, Mask2Former and its loss of transformers, adapter from the formulas.

Weights are random and the encoders frozen. Letters of shapes are those of `spectralmoe_jax.adapters.base`;
maps are (B, D, h, w) here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_adapter import Adapter
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel
from transformers import Mask2FormerConfig as TorchHeadConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPixelDecoderOutput,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

from spectralmoe_jax.config.model import EncoderConfig, Mask2FormerConfig
from spectralmoe_jax.config.schema import LossConfig, TrainConfig
from spectralmoe_jax.models.segmenter import SegmenterConfig


class LinkedQueries(nn.Module):
    """In the place of an embedding of queries: holds those of the adapter as its weight."""

    weight: Tensor


class Head(Mask2FormerPreTrainedModel):
    """Pixel decoder, mask decoder and classifier of transformers on four resized maps."""

    def __init__(self, config: TorchHeadConfig, in_features: int, scales: Sequence[float]):
        super().__init__(config)
        self.scales = scales
        self.pixel_decoder = Mask2FormerPixelDecoder(config, [in_features] * len(scales))
        self.transformer_module = Mask2FormerTransformerModule(config.feature_size, config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()
        self.transformer_module.queries_embedder = LinkedQueries()

    def pixels(self, maps: Sequence[Tensor]) -> Mask2FormerPixelDecoderOutput:
        """Resize and decode four maps (B, D, h, w), finest first."""
        pairs = zip(maps, self.scales, strict=True)
        resized = [x if s == 1 else F.interpolate(x, scale_factor=s, mode="bilinear") for x, s in pairs]
        return self.pixel_decoder(resized)

    def decode(self, levels: Sequence[Tensor], finest: Tensor, queries: Tensor) -> tuple[list, list]:
        """Class logits (B, Q, C + 1) and mask logits (B, Q, h, w), K of each.

        Args:
          levels: three of (B, D, h, w), the coarsest first.
          finest: mask features (B, D, h, w).
          queries: position embeddings (Q, D).
        """
        self.transformer_module.queries_embedder.weight = queries
        out = self.transformer_module(list(levels), finest)
        classes = [self.class_predictor(x.transpose(0, 1)) for x in out.intermediate_hidden_states]
        return classes, list(out.masks_queries_logits)

    def forward(self, maps: Sequence[Tensor], queries: Tensor) -> tuple[list, list]:
        """Logits as in `decode` of four maps (B, D, h, w)."""
        pixels = self.pixels(maps)
        return self.decode(pixels.multi_scale_features, pixels.mask_features, queries)


class LinearHead(nn.Module):
    """A classifier of every pixel on the maps side by side, at the size of the largest."""

    def __init__(self, in_features: int, maps: int, classes: int):
        super().__init__()
        self.classifier = nn.Conv2d(maps * in_features, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, D, h, w) of one size -> logits (B, C, h, w)."""
        return self.classifier(torch.cat(list(maps), dim=1))


class HeadLoss(nn.Module):
    """The loss of transformers' Mask2Former with the weights of its terms."""

    def __init__(self, sizes: TorchHeadConfig, loss: LossConfig):
        super().__init__()
        self.term_weights = {
            "loss_cross_entropy": loss.class_weight,
            "loss_mask": loss.mask_weight,
            "loss_dice": loss.dice_weight,
        }
        self.terms = Mask2FormerLoss(sizes, self.term_weights)

    def forward(self, classes: Sequence[Tensor], masks: Sequence[Tensor], targets: Targets) -> Tensor:
        """The loss () of K class logits (B, Q, C + 1) and mask logits (B, Q, h, w)."""
        outputs = [
            {"masks_queries_logits": m.float(), "class_queries_logits": c.float()}
            for m, c in zip(masks, classes, strict=True)
        ]
        terms = self.terms(
            **outputs[-1],
            mask_labels=targets.masks,
            class_labels=targets.classes,
            auxiliary_predictions=outputs[:-1],
        )
        weights = self.term_weights.items()
        return sum(w * value for key, w in weights for name, value in terms.items() if name.startswith(key))


class TorchSegmenter(nn.Module):
    """Frozen encoders, adapter, and a head with its loss."""

    def __init__(self, config: SegmenterConfig, loss: LossConfig):
        super().__init__()
        assert config.depth is not None
        self.config, width, layers = config, config.visual.width, config.visual.layers
        self.narrow = config.dtype == "bfloat16"
        dtype = torch.bfloat16 if self.narrow else torch.float32
        self.visual = dinov3(config.visual).to(dtype).eval().requires_grad_(False)
        self.depth = dinov2(config.depth).to(dtype).eval().requires_grad_(False)
        self.adapter = Adapter(config.adapter, layers, width)
        if isinstance(config.head, Mask2FormerConfig):
            sizes = head_config(config.head, loss)
            self.head: nn.Module = Head(sizes, width, config.head.scales)
            self.criterion = HeadLoss(sizes, loss)
        else:
            self.head = LinearHead(width, len(config.out_layers), config.head.num_classes)
        statistics = torch.tensor([config.pixel_mean, config.pixel_std])[..., None, None]
        self.register_buffer("statistics", statistics)

    def autocast(self) -> torch.autocast:
        """Context of a forward pass: with bfloat16, products are computed in it."""
        return torch.autocast(self.statistics.device.type, torch.bfloat16, enabled=self.narrow)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Raw pixels (B, bands, H, W) -> mean zero, deviation one."""
        return ((pixels - self.statistics[0]) / self.statistics[1]).to(self.visual.dtype)

    def visual_layers(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], Sequence[nn.Module]]:
        """Tokens (B, T, D) before the first visual block, rotary positions, and the blocks."""
        positions = self.visual.rope_embeddings(image)
        return self.visual.embeddings(image), positions, self.visual.model.layer

    def backbone(self, image: Tensor, training: bool) -> tuple[list[Tensor], Tensor]:
        """Maps (B, D, h, w) of the chosen layers and the balance loss () of a normalised image."""
        batch, _, height, width = image.shape
        grid = (height // self.config.visual.patch_size, width // self.config.visual.patch_size)
        skip = self.config.visual.prefix_tokens
        tokens, positions, blocks = self.visual_layers(image)
        with torch.no_grad():
            depth = self.depth.embeddings(image)
        maps, balances, noise = {}, [], None
        for layer, (block, depth_block) in enumerate(zip(blocks, self.depth.encoder.layer, strict=True)):
            with torch.no_grad():
                depth = depth_block(depth)
            tokens = block(tokens, position_embeddings=positions)
            if training:
                shape = (2, batch, grid[0] * grid[1], self.config.adapter.num_experts)
                noise = torch.randn(shape, device=image.device)
            refined, balance = self.adapter(layer, tokens[:, skip:], depth[:, 1:], noise)
            tokens = torch.cat([tokens[:, :skip], refined], dim=1)
            balances.append(balance)
            if layer in self.config.out_layers:
                maps[layer] = refined.mT.unflatten(2, grid)
        return [maps[layer] for layer in self.config.out_layers], torch.stack(balances).mean()

    def loss(self, pixels: Tensor, targets: Targets) -> Tensor:
        """The training loss () of raw pixels (B, bands, H, W)."""
        with self.autocast():
            maps, balance = self.backbone(self.normalise(pixels), training=True)
            if isinstance(self.head, LinearHead):
                logits = self.head(maps).float()
            else:
                classes, masks = self.head(maps, self.adapter.queries())
        if isinstance(self.head, LinearHead):
            logits = F.interpolate(logits, size=targets.labels.shape[1:], mode="bilinear")
            return balance + F.cross_entropy(logits, targets.labels, ignore_index=255)
        return balance + self.criterion(classes, masks, targets)

    @torch.no_grad()
    def scores(self, tiles: np.ndarray) -> np.ndarray:
        """Class scores (B, S, S, C) of raw tiles (B, S, S, bands)."""
        pixels = torch.from_numpy(tiles).to(self.statistics.device).permute(0, 3, 1, 2)
        with self.autocast():
            maps, _ = self.backbone(self.normalise(pixels), training=False)
            if isinstance(self.head, LinearHead):
                logits = F.interpolate(self.head(maps).float(), size=pixels.shape[2:], mode="bilinear")
                return logits.softmax(1).permute(0, 2, 3, 1).cpu().numpy()
            classes, masks = self.head(maps, self.adapter.queries())
        scores = []
        for logits, mask in zip(classes[-1].float(), masks[-1].float(), strict=True):  # (Q, C+1), (Q, h, w)
            whole = F.interpolate(mask[None], size=pixels.shape[2:], mode="bilinear")[0].sigmoid()
            scores.append(torch.einsum("qc,qhw->hwc", logits.softmax(-1)[:, :-1], whole))
        return torch.stack(scores).cpu().numpy()


class Targets:
    """Labels as the loss of transformers takes them, made before any timing as its image processor does.

    Attributes:
      labels: (B, H, W) int64.
      classes: the classes of each image.
      masks: their masks of each image, (classes, H, W) float32.
    """

    def __init__(self, labels: np.ndarray, device: torch.device):
        self.labels = torch.from_numpy(labels).long().to(device)
        self.classes = [image.unique() for image in self.labels]
        pairs = zip(self.labels, self.classes, strict=True)
        self.masks = [(image[None] == found[:, None, None]).float() for image, found in pairs]


class TorchStep:
    """Training steps of a segmenter on one batch; every method returns when the device is done."""

    def __init__(
        self, model: TorchSegmenter, batch: dict[str, np.ndarray], settings: TrainConfig, device: torch.device
    ):
        self.model, self.device, self.clip = model.to(device), device, settings.clip_norm
        self.pixels = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(device)
        self.targets = Targets(batch["label"], device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )

    def forward(self) -> float:
        """Compute the loss without gradients."""
        with torch.no_grad():
            return self.model.loss(self.pixels, self.targets).item()

    def gradients(self) -> float:
        """Compute the loss and its gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model.loss(self.pixels, self.targets)
        loss.backward()
        self.wait()
        return loss.item()

    def step(self) -> float:
        """Compute loss, gradients and their norm, and update the parameters."""
        loss = self.gradients()
        self.update()
        return loss

    def update(self) -> None:
        """Compute the gradients' norm, clip by it where that is asked for, and update the parameters."""
        found = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(found)
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimizer.step()
        self.wait()

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def parameter_groups(model: TorchSegmenter, weight_decay: float) -> list[dict]:
    """Trainable parameters with weight decay, and without: norms, embeddings, experts, gates and alpha."""
    free = {model.adapter.scale, *model.adapter.layers.parameters()}
    for name, module in model.head.named_modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.Embedding):
            free |= set(module.parameters())
        elif name == "pixel_decoder":
            free.add(module.level_embed)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p not in free]
    kept = [p for p in trained if p in free]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def dinov3(config: EncoderConfig) -> DINOv3ViTModel:
    """Make a DINOv3 encoder with random weights."""
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            **encoder_sizes(config),
            intermediate_size=config.hidden,
            num_register_tokens=config.storage_tokens,
        )
    )


def dinov2(config: EncoderConfig) -> Dinov2Model:
    """Make a DINOv2 encoder with random weights."""
    sizes = {"image_size": config.table_size * config.patch_size, "mlp_ratio": int(config.mlp_ratio)}
    return Dinov2Model(Dinov2Config(**encoder_sizes(config), **sizes))


def encoder_sizes(config: EncoderConfig) -> dict:
    """Return the sizes that all encoders of transformers have, by their names."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "patch_size": config.patch_size,
        "num_channels": config.in_channels,
        "layer_norm_eps": config.norm_eps,
        "layerscale_value": config.layer_scale,
    }


def head_config(config: Mask2FormerConfig, loss: LossConfig) -> TorchHeadConfig:
    """Return the settings of transformers' Mask2Former; it counts one decoder layer more than it has."""
    return TorchHeadConfig(
        feature_size=config.width,
        mask_feature_size=config.width,
        hidden_dim=config.width,
        encoder_feedforward_dim=config.encoder_ffn,
        dim_feedforward=config.decoder_ffn,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers + 1,
        num_attention_heads=config.num_heads,
        num_queries=config.num_queries,
        num_labels=config.num_classes,
        class_weight=loss.class_weight,
        mask_weight=loss.mask_weight,
        dice_weight=loss.dice_weight,
        no_object_weight=loss.no_object_weight,
        train_num_points=loss.num_points,
        oversample_ratio=loss.oversample_ratio,
        importance_sample_ratio=loss.importance_sample_ratio,
    )
