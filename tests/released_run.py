"""The golden segmenters of the authors' code as a user has them: weights, a configuration, and scenes."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import save_config

BANDS = ("nir", "red", "green", "blue")
CLASSES = ("one", "two", "three", "four", "five")


def golden_files(name: str, goldens: Path) -> tuple[Path, Path]:
    """(weights, numbers) of a golden segmenter; skips where the large weights are not beside the project."""
    shared = goldens.parent.parent.parent / "shared" / "reference" / "goldens"
    file = f"released_tiny/{name}_laplace_k1"
    found = next((root for root in (goldens, shared) if (root / f"{file}.safetensors").is_file()), None)
    if found is None:
        pytest.skip(
            f"needs {file}.safetensors of ../shared/reference/goldens, which this machine does not have"
        )
    return found / f"{file}.safetensors", goldens / f"{file}.npz"


def released_config(name: str, goldens: Path, data: Path) -> RunConfig:
    """The configuration that a user would write for a golden segmenter, for the scenes of `write_scenes`."""
    meta = json.loads((goldens / "released_tiny" / f"{name}_laplace_k1.json").read_text())
    head, adapter, depth = meta["head"], meta["adapter"], meta["depth_encoder"]
    # the released backbone of DOFA leaves all maps at the size of the grid
    scales = (4.0, 2.0, 1.0, 0.5) if name == "dinov3" else (1.0, 1.0, 1.0, 1.0)
    sizes = {"width": meta["embed_dim"], "layers": meta["depth"], "heads": meta["num_heads"]}
    visual = {"kind": name, **sizes, "patch_size": meta["patch_size"], "norm_eps": meta["norm_eps"]}
    if name == "dinov3":
        visual |= {"storage_tokens": meta["num_storage_tokens"], "rope_base": meta["rope_base"]}
    else:
        visual |= {"table_size": meta["image_size"] // meta["patch_size"]}
        visual |= {"wavelengths": tuple(meta["wavelengths_um"])}
    return load_config("configs/dubai.py").replaced({
        "name": f"released {name}", "bands": BANDS, "classes": {"names": CLASSES},
        "classes.palette": tuple((40 * k, 20, 200 - 40 * k) for k in range(5)),
        "data": {
            "kind": "geotiff", "root": str(data), "source": ("absent",), "target": ("scenes",),
            "image_glob": "{domain}/image_*.tif", "mask_template": "{domain}/label_of_{stem}.tif",
            "label_values": (0, 1, 2, 3, 4), "ignore_values": (255,), "crop": meta["image_size"],
        },
        "model.visual": visual,
        "model.depth": {
            "kind": depth["kind"], "width": depth["embed_dim"], "layers": depth["depth"],
            "heads": depth["num_heads"], "patch_size": depth["patch_size"], "norm_eps": depth["norm_eps"],
            "table_size": meta["image_size"] // meta["patch_size"],
        },
        "model.adapter": {
            "preset": "released", "use_depth": True, "num_experts": adapter["num_experts"],
            "rank": adapter["rank"], "num_tokens": adapter["num_tokens"], "query_dim": adapter["query_dim"],
            "top_k": adapter["top_k"], "gating": adapter["gating"],
            "balance_weight": adapter["balance_loss_coef"],
        },
        "model.head": {
            "num_queries": head["num_queries"], "width": head["feat_channels"],
            "num_heads": head["num_heads"], "encoder_layers": head["encoder_layers"],
            "decoder_layers": head["decoder_layers"], "encoder_ffn": head["encoder_ffn"],
            "decoder_ffn": head["decoder_ffn"], "points": head["deformable_points"],
            "group_norm_groups": head["group_norm_groups"], "scales": scales,
        },
        "model.pixel_mean": (0.0,) * 4, "model.pixel_std": (1.0,) * 4,
        "evaluate": {"window": meta["image_size"], "overlap": 0, "batch_size": 2},
    })  # fmt: skip


def write_scenes(folder: Path, numbers: dict[str, np.ndarray]) -> list[Path]:
    """Write the golden images and labels as GeoTIFFs, and return the paths of the images."""
    folder.mkdir(parents=True)
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500_000, 4_000_000, 10, 10)}
    paths = []
    for number, (image, label) in enumerate(zip(numbers["image"], numbers["label"], strict=True)):
        for part, values in (("image", image), ("label_of_image", label[None].astype(np.uint8))):
            path = folder / f"{part}_{number}.tif"
            shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2]}
            nodata = None if part == "image" else 255
            with rasterio.open(path, "w", dtype=values.dtype, nodata=nodata, **shape, **place) as sink:
                sink.write(values)
                if part == "image":
                    sink.descriptions = BANDS
        paths.append(folder / f"image_{number}.tif")
    return paths


def write_config_file(path: Path, config: RunConfig) -> Path:
    """Write a Python file that returns a configuration."""
    save_config(config, path.with_suffix(".json"))
    path.write_text(
        "from spectralmoe_jax.config.stored import read_config\n"
        f"def get_config(): return read_config({str(path.with_suffix('.json'))!r})\n"
    )
    return path
