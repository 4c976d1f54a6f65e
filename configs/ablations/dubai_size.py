"""Crop, width and depth of the small encoder of configs/dubai.py, one at a time.

Variants start from a width of 128, as the search did; the configuration has the winner, 192. Runs take a
fifth of the configuration's steps and one seed; crops of another size train on the same number of pixels. The
choice was made on the held-out tenth of the source, `miou` of kind `evaluate` in each run's metrics.jsonl;
the table shows the target, as always.

Score: in docs/results.md.
Cost: 42 minutes on two CPU cores, two runs at a time, measured.

spectralmoe ablate configs/ablations/dubai_size.py --workdir runs/dubai_size --config.data.root=PATH/dubai
"""

from spectralmoe_jax.ablation import Grid


def get_grid(base: str = "configs/dubai.py") -> Grid:
    def length(steps: int) -> dict:
        return {f"train.{key}": steps for key in ("steps", "evaluate_every", "checkpoint_every")}

    def crop(side: int) -> dict:
        sizes = {"data.crop": side, "evaluate.window": side, "evaluate.overlap": side // 3}
        return sizes | length(round(240 * (192 / side) ** 2))

    def layers(count: int, taken: tuple[int, ...]) -> dict:
        return {"model.visual.layers": count, "model.out_layers": taken}

    return Grid(
        title="Crop, width and depth on Dubai",
        base=base,
        common=length(240) | {"model.visual.width": 128},
        variants={
            "crop 192, width 128, 4 layers": {},
            "crop 96": crop(96),
            "crop 288": crop(288),
            "width 64": {"model.visual.width": 64},
            "width 192": {"model.visual.width": 192},
            "2 layers": layers(2, (0, 0, 1, 1)),
            "6 layers": layers(6, (0, 1, 3, 5)),
        },
        reference="crop 192, width 128, 4 layers",
        seeds=(0,),
    )
