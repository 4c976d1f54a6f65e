"""Wavelengths from files to the model: read, compared, kept with the run, dropped where they do not fit."""

import numpy as np
import pytest
import rasterio

from data_pipelines.sources import open_source, resolve_run_wavelengths, resolve_stream_wavelengths
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.stored import read_config, save_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import segmenter_config
from spectralmoe_jax.sensors import SENSORS, bandwidths, wavelengths
from tests.rasters import PLACE, write_raster

BANDS = ("band 3", "band 8", "band 20")


@pytest.fixture
def write(tmp_path):
    """Writes an image whose band tags state centres in nm, None for none, and its labels."""

    def write(name, centres, domain="a"):
        names = [f"band {n}" for n in (3, 8, 20)]
        path = write_raster(
            tmp_path / f"{domain}/images/{name}.tif", np.full((16, 16, 3), 9, np.int16), names, **PLACE
        )
        with rasterio.open(path, "r+") as file:
            for band, centre in enumerate(centres, 1):
                if centre is not None:
                    file.update_tags(band, wavelength=str(centre), wavelength_units="nanometers")
        write_raster(tmp_path / f"{domain}/masks/{name}.tif", np.ones((16, 16), np.uint8), **PLACE)

    return write


def configuration(root, sensor, **visual):
    config = load_config("configs/enmap_landcover.py", [
        f"--config.data.root={root}", "--config.data.image_glob={domain}/images/*.tif",
        "--config.data.mask_template={domain}/masks/{stem}.tif", "--config.data.source=a,",
    ])  # fmt: skip
    return config.replaced(
        {"bands": BANDS, "sensor": sensor, "model.pixel_mean": (0.0,) * 3, "model.pixel_std": (1.0,) * 3}
        | {f"model.visual.{key}": value for key, value in visual.items()}
    )


def fed(config):
    return segmenter_config(config).visual.wavelengths


def test_the_model_uses_the_wavelengths_of_enmap_files(shared_data, tmp_path):
    """As rasterio reads the tags; they stay with the run, for any later use of its configuration."""
    config = load_config("configs/enmap_landcover.py", [f"--config.data.root={shared_data / 'enmap'}"])
    resolved = resolve_run_wavelengths(config)
    with rasterio.open(shared_data / "enmap/images/enmap_potsdam_tile_128_0.tif") as file:
        numbers = [int(band.removeprefix("band ")) for band in config.bands]
        tags = [float(file.tags(number)["wavelength"]) / 1000 for number in numbers]
    np.testing.assert_allclose(fed(resolved), tags, rtol=0, atol=1e-9)
    assert fed(resolved) != fed(config) == wavelengths(config.bands, "enmap")
    save_config(resolved, tmp_path / "config.json")
    run = read_config(tmp_path / "config.json")
    assert fed(run) == fed(resolved) == fed(config.with_statements_of_run(run))
    assert config.wavelengths_of_files is None
    assert fed(read_config(tmp_path / "config.json", ["--config.data.crop=16"])) == fed(resolved)


def widths(config):
    return segmenter_config(config).visual.bandwidths


def test_the_model_uses_the_bandwidths_of_enmap_files(shared_data, tmp_path):
    """Only an encoder that takes bandwidths reads them; they stay with the run as wavelengths do."""
    config = load_config("configs/enmap_landcover.py", [
        f"--config.data.root={shared_data / 'enmap'}", "--config.model.visual.kind=copernicus_fm",
        "--config.data.source=128_0,",
    ])  # fmt: skip
    resolved = resolve_run_wavelengths(config)
    with rasterio.open(shared_data / "enmap/images/enmap_potsdam_tile_128_0.tif") as file:
        numbers = [int(band.removeprefix("band ")) for band in config.bands]
        tags = [float(file.tags(number)["fwhm"]) / 1000 for number in numbers]
    np.testing.assert_allclose(widths(resolved), tags, rtol=0, atol=1e-9)
    np.testing.assert_allclose(widths(config), tags, rtol=0, atol=6e-5)  # the table has tenths of nanometres
    save_config(resolved, tmp_path / "config.json")
    run = read_config(tmp_path / "config.json")
    assert widths(run) == widths(resolved) == widths(config.with_statements_of_run(run))
    dofa = resolve_run_wavelengths(config.replaced({"model.visual.kind": "dofa"}))
    assert dofa.stated_wavelengths.bandwidths == ()


def test_the_sensor_fills_in_missing_bandwidths(write, tmp_path):
    write("x", (430.0, 456.0, 511.0))
    config = resolve_run_wavelengths(configuration(tmp_path, "enmap", kind="copernicus_fm"))
    assert fed(config) == (0.43, 0.456, 0.511)
    assert widths(config) == bandwidths(BANDS, "enmap") == pytest.approx((0.0064, 0.006, 0.0059))
    with pytest.raises(
        UserError, match=r"the bandwidth of 'band 3' is not known .*visual\.bandwidths in mic"
    ):
        widths(config.replaced({"sensor": None, "model.visual.wavelengths": (0.43, 0.456, 0.511)}))


def test_other_sensors_or_bands_do_not_use_them(write, tmp_path):
    write("x", (430.0, 456.0, 511.0))
    run = resolve_run_wavelengths(configuration(tmp_path, "enmap"))
    assert fed(run) == (0.43, 0.456, 0.511)
    other = run.replaced({"bands": ("band 3", "band 8", "band 21")})
    assert fed(other) == wavelengths(("band 3", "band 8", "band 21"), "enmap")
    other = run.replaced({"bands": BANDS, "sensor": "orbita_ohs"})
    assert fed(other) == fed(other.with_statements_of_run(run)) == (0.5, 0.58, 0.76)


def test_files_must_agree_to_a_nanometre(write, tmp_path):
    write("x", (430.0, 456.0, 511.0))
    write("y", (430.9, 456.0, 511.0))
    config = configuration(tmp_path, "enmap")
    assert fed(resolve_run_wavelengths(config)) == (0.43, 0.456, 0.511)
    write("z", (430.0, 457.2, 511.0))
    with pytest.raises(UserError) as error:
        resolve_run_wavelengths(config)
    for part in ("a/images/z.tif: band band 8 lies at 0.4572 um", "a/images/x.tif at 0.456 um"):
        assert part in str(error.value)


@pytest.mark.parametrize("centres", [(None, None, None), (430.0, None, 511.0)])
def test_the_sensor_fills_in_missing_wavelengths(write, tmp_path, centres):
    write("x", centres)
    config = configuration(tmp_path, "enmap")
    assert resolve_run_wavelengths(config) is config
    assert fed(config) == wavelengths(BANDS, "enmap")


def test_given_wavelengths_win_and_are_compared(write, tmp_path):
    write("x", (430.0, 456.0, 511.0))
    config = configuration(tmp_path, "enmap", wavelengths=(0.431, 0.456, 0.511))
    assert resolve_run_wavelengths(config) is config
    assert open_source(config, ("a",)).records
    with pytest.raises(UserError, match=r"band band 3 lies at 0\.43 um, .* to be at 0\.46 um"):
        open_source(configuration(tmp_path, "enmap", wavelengths=(0.46, 0.456, 0.511)), ("a",))


def test_an_encoder_with_fixed_bands_is_unchanged(write, tmp_path):
    write("x", (430.0, 456.0, 511.0))
    config = configuration(tmp_path, "enmap", kind="dinov3")
    assert resolve_run_wavelengths(config) is config


@pytest.mark.parametrize("sensor", [name for name in SENSORS if SENSORS[name].nominal])
@pytest.mark.parametrize("kind", ["dofa", "dinov3"])
def test_file_wavelengths_win_over_nominal_ones(write, tmp_path, sensor, kind):
    """Far from the table, which would be an error for other sensors."""
    write("x", [1000 * centre + 40 for centre in wavelengths(BANDS, sensor)])
    config = configuration(tmp_path, sensor, kind=kind)
    assert open_source(config, ("a",)).records
    if kind == "dofa":
        resolved = resolve_run_wavelengths(config)
        np.testing.assert_allclose(fed(resolved), np.add(wavelengths(BANDS, sensor), 0.04), atol=1e-9)
        write("y", [1000 * centre + 120 for centre in wavelengths(BANDS, sensor)], "b")
        with pytest.raises(UserError, match=r"b/images/y\.tif: band band 3 lies at"):
            open_source(resolved, ("b",))  # the target is compared with what the model is fed with


def test_other_sensors_are_compared_with_their_table(write, tmp_path):
    write("x", (460.0, 456.0, 511.0))
    config = resolve_run_wavelengths(configuration(tmp_path, "enmap"))
    with pytest.raises(UserError, match=r"x\.tif: band band 3 lies at 0\.46 um, .* at 0\.4293 um"):
        open_source(config, ("a",))


def test_each_stream_has_its_own(write, tmp_path):
    write("x", (430.0, 456.0, 511.0))
    write("y", (500.4, 580.0, 760.0), "b")
    streams = {"ohs": {"sensor": "orbita_ohs", "data": {"source": ("b",)}}}
    config = configuration(tmp_path, "enmap").replaced({"streams": streams})
    resolved = resolve_run_wavelengths(config)
    assert fed(resolved.stream("main")) == (0.43, 0.456, 0.511)
    assert fed(resolved.stream("ohs")) == (0.5004, 0.58, 0.76)
    alone = config.stream("ohs")
    assert fed(alone.with_statements_of_run(resolved)) == (0.5004, 0.58, 0.76)


def test_evaluation_on_another_band_grid_reads_its_wavelengths(write, tmp_path):
    write("x", (430.0, 456.0, 511.0))
    write("y", (433.0, 456.0, 511.0), "b")
    assert fed(resolve_stream_wavelengths(configuration(tmp_path, "enmap"), ("b",))) == (0.433, 0.456, 0.511)
