"""Overrides that shrink the quickstart's configuration to a size that trains in seconds."""

SIZES = [
    "data.scenes_source=4", "data.scenes_target=1", "data.scene_size=64", "data.holdout=0.25", "data.crop=32",
    "model.visual.width=16", "model.visual.patch_size=8", "model.adapter.num_tokens=6",
    "model.adapter.query_dim=16", "model.adapter.rank=2", "model.head.num_queries=6", "model.head.width=16",
    "model.head.num_heads=2", "model.head.encoder_ffn=16", "model.head.decoder_ffn=16", "loss.num_points=32",
    "train.batch_size=2", "train.warmup_steps=1", "train.log_every=1", "evaluate.window=32",
    "evaluate.overlap=8", "evaluate.batch_size=4",
]  # fmt: skip
