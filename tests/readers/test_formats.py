"""Files of many writers: pixels and masks as plain rasterio reads them, in training and prediction alike."""

import cv2
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from PIL import Image

from data_pipelines.readers.file_records import find_channels
from data_pipelines.readers.raster_header import read_header
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_raster
from tests.reference_pixels import check, read_both

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SIZE = (61, 83)
HOLE, CORNER = np.s_[10:20, 5:30], np.s_[30:40, :5]  # all bands lack data, the first does
U8, U16, I16, F32, F64 = np.uint8, np.uint16, np.int16, np.float32, np.float64
RGB = {"photometric": "RGB"}
TILES = {"tiled": "yes", "blockxsize": "32", "blockysize": "16"}


def values(bands, dtype, nodata=None, seed=0):
    """Values (H, W, C), with nodata in two places."""
    rng = np.random.default_rng(seed)
    most = 4000 if np.dtype(dtype).kind == "f" else min(4000, np.iinfo(dtype).max) + 1
    pixels = rng.integers(0, most, (*SIZE, bands)).astype(dtype)
    if nodata is not None:
        pixels[HOLE] = nodata
        pixels[(*CORNER, 0)] = nodata
    return pixels


COPIES = [
    ("pixel.tif", "GTiff", 5, U16, 7, {"interleave": "pixel", "compress": "deflate", **TILES}),
    ("band.tif", "GTiff", 5, U16, 7, {"interleave": "band", "compress": "lzw", **TILES}),
    ("zstd.tif", "GTiff", 5, U16, 7, {"interleave": "pixel", "compress": "zstd"}),
    ("packbits.tif", "GTiff", 2, U16, 7, {"compress": "packbits"}),
    ("lerc.tif", "GTiff", 3, F32, -9999, {"compress": "lerc"}),
    ("lzma.tif", "GTiff", 2, U8, None, {"compress": "lzma"}),
    ("webp.tif", "GTiff", 3, U8, None, {"compress": "webp", "interleave": "pixel"}),
    ("ycbcr.tif", "GTiff", 3, U8, None, {"compress": "jpeg", "photometric": "ycbcr"}),
    ("differences.tif", "GTiff", 3, I16, -3, {"compress": "lzw", "predictor": "2"}),
    ("floats.tif", "GTiff", 3, F32, -9999, {"compress": "deflate", "predictor": "3"}),
    ("nan.tif", "GTiff", 3, F64, np.nan, {}),
    ("lowest.tif", "GTiff", 2, F32, float(np.finfo(F32).min), {}),
    ("big.tif", "GTiff", 3, np.uint32, 5, {"bigtiff": "yes", "endianness": "big"}),
    ("long.tif", "GTiff", 2, np.int64, 5, {}),
    ("signed.tif", "GTiff", 2, np.int8, -5, {}),
    ("twelve.tif", "GTiff", 2, U16, None, {"nbits": "12"}),
    ("cog.tif", "COG", 4, U16, 9, {"blocksize": "128"}),
    *((f"{bands}.png", "PNG", bands, dtype, None, {}) for bands in (1, 2, 3, 4) for dtype in (U8, U16)),
    ("nodata.png", "PNG", 1, U8, 3, {}),
    ("colour.png", "PNG", 3, U8, 3, {}),
    *((f"{bands}.jpg", "JPEG", bands, U8, None, {}) for bands in (1, 3)),
    ("8.jp2", "JP2OpenJPEG", 3, U8, None, {"reversible": "yes", "quality": "100"}),
    ("16.jp2", "JP2OpenJPEG", 5, U16, 4, {"reversible": "yes", "quality": "100"}),
    *((f"{order}.img", "ENVI", 4, I16, -7, {"interleave": order}) for order in ("bsq", "bil", "bip")),
    ("esri.bil", "EHdr", 2, U16, 9, {}),
    ("hfa.img", "HFA", 4, F32, -9999, {}),
    ("packed.img", "HFA", 3, U16, 3, {"compressed": "yes"}),
    ("grey.bmp", "BMP", 1, U8, None, {}),
    ("colour.bmp", "BMP", 3, U8, None, {}),
    ("3.webp", "WEBP", 3, U8, None, {"lossless": "yes"}),
    ("4.webp", "WEBP", 4, U8, None, {"lossless": "yes"}),
    ("grey.gif", "GIF", 1, U8, None, {}),
    ("one.nc", "netCDF", 1, I16, -99, {}),
    ("grid.asc", "AAIGrid", 1, F32, -9999, {}),
    ("any.ppm", "PNM", 3, U8, None, {}),
    ("nitf.ntf", "NITF", 3, U8, None, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "driver", "bands", "dtype", "nodata", "options"), COPIES)
def test_drivers_of_gdal(name, driver, bands, dtype, nodata, options, tmp_path):
    stored = {"nodata": nodata} | (RGB if bands in (3, 4) and dtype == U8 else {})
    first = write_raster(tmp_path / "first" / "x.tif", values(bands, dtype, nodata), **stored, **PLACE)
    path = tmp_path / name
    with rasterio.Env() as gdal:
        if driver not in gdal.drivers():
            pytest.skip(f"this GDAL has no {driver}")
    rasterio.shutil.copy(first, path, driver=driver, **options)
    _, missing = check(path)
    if nodata is not None:
        assert missing[HOLE].all()
        assert bands == 1 or not missing[CORNER].all()


def test_other_writers(tmp_path):
    """Pillow, OpenCV and tifffile."""
    colour, grey, deep = values(3, U8), values(1, U8)[..., 0], values(1, U16)[..., 0]
    image = Image.fromarray(colour)
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif", "a.webp", "a.ppm", "a.tga"):
        image.save(tmp_path / name)
    Image.fromarray(values(4, U8)).save(tmp_path / "alpha.png")
    Image.fromarray(values(2, U8), "LA").save(tmp_path / "grey_alpha.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(values(1, F32)[..., 0]).save(tmp_path / "float.tif")
    image.save(tmp_path / "lzw.tif", compression="tiff_lzw")
    image.save(tmp_path / "ycbcr.tif", compression="jpeg")
    Image.fromarray(grey).save(tmp_path / "grey.bmp")
    image.convert("1").save(tmp_path / "bits.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    Image.fromarray(grey).save(tmp_path / "progressive.jpg", progressive=True)
    cv2.imwrite(str(tmp_path / "b.png"), colour)
    cv2.imwrite(str(tmp_path / "b.tif"), values(3, U16))
    cv2.imwrite(str(tmp_path / "b.jp2"), colour)
    cv2.imwrite(str(tmp_path / "b4.png"), values(4, U16))
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(colour, -1, 0), photometric="rgb",
                     planarconfig="separate", compression="zlib")  # fmt: skip
    tifffile.imwrite(tmp_path / "contiguous.tif", values(6, U16), photometric="minisblack",
                     planarconfig="contig", tile=(16, 32))  # fmt: skip
    tifffile.imwrite(tmp_path / "alpha.tif", values(5, U8), photometric="rgb",
                     extrasamples=("unspecified", "unassalpha"))  # fmt: skip
    tifffile.imwrite(
        tmp_path / "big.tif", deep, bigtiff=True, byteorder=">", predictor=True, compression="zlib"
    )
    for path in sorted(tmp_path.iterdir()):
        check(path)
    assert check(tmp_path / "alpha.tif", alpha=(4,))[1].any()


@pytest.mark.parametrize("mode", ["P", "1"])
def test_numbers_of_a_colour_table_are_no_pixels(mode, tmp_path):
    image = Image.fromarray(values(3, U8)).convert(mode)
    for name in ("x.tif", "x.gif", "x.png") if mode == "P" else ("x.tif",):  # others hold greys
        image.save(tmp_path / name)
        with pytest.raises(
            UserError, match=rf"{name}: its band 1, read as 0, holds numbers of a colour table"
        ):
            read_both(tmp_path / name)


def test_refused_in_a_line_that_says_what_it_is(tmp_path):
    image = Image.fromarray(values(3, U8))
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    with pytest.raises(UserError, match=r"cmyk.tif: 4 bands .*\(CMYK: cyan, magenta, yellow, black\)"):
        read_rgb(tmp_path / "cmyk.tif")
    image.convert("L").save(tmp_path / "grey.png")
    with pytest.raises(UserError, match=r"grey.png: 1 bands without names \(gray\)"):
        read_rgb(tmp_path / "grey.png")
    for name, driver in (("pci.pix", "PCIDSK"), ("mapper.ers", "ERS")):  # may name other files
        rasterio.shutil.copy(write_raster(tmp_path / "x.tif", values(3, U8)), tmp_path / name, driver=driver)
        with pytest.raises(UserError, match=name):
            read_both(tmp_path / name)
    write_raster(tmp_path / "slc.tif", values(2, F32).astype(np.complex64))
    with pytest.raises(UserError, match="complex"):
        read_both(tmp_path / "slc.tif")


def read_rgb(path):
    return find_channels(path, read_header(path), ("red", "green", "blue"), None, None)


def test_bands_of_several_types_in_a_virtual_raster(tmp_path):
    write_raster(tmp_path / "x.tif", values(3, U8, 3), **RGB)
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{number}">{nodata}<SimpleSource><SourceFilename '
        f'relativeToVRT="1">x.tif</SourceFilename><SourceBand>{number}</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for number, (kind, nodata) in enumerate(
            (("Byte", "<NoDataValue>3</NoDataValue>"), ("UInt16", "<NoDataValue>3</NoDataValue>"),
             ("Float32", "")), 1)
    )  # fmt: skip
    path = tmp_path / "x.vrt"
    path.write_text(f'<VRTDataset rasterXSize="{SIZE[1]}" rasterYSize="{SIZE[0]}">{bands}</VRTDataset>')
    check(path, lost=0)


def test_pages_and_containers(tmp_path, caplog):
    pages = tmp_path / "pages.tif"
    tifffile.imwrite(pages, values(3, U8).transpose(2, 0, 1), photometric="minisblack")
    pixels, _ = check(pages)
    np.testing.assert_array_equal(pixels[..., 0], values(3, U8)[..., 0])
    told = [entry.getMessage() for entry in caplog.records if "holds 3 rasters" in entry.getMessage()]
    assert len(told) == 1
    assert f"GTIFF_DIR:2:{pages}" in told[0]


def test_real_odd_files(shared_data):
    """Of rasterio's, rioxarray's and others' collections of files that made trouble."""
    refused = {
        "PLANET_SCOPE_3D.nc": "holds 2 rasters.*netcdf:.*blue, netcdf:.*green",
        "sentinel_2_L1C_geographic.nc": "holds 2 rasters.*netcdf:.*red, netcdf:.*nir",
        "cint16.tif": "complex",
        "corrupt.tif": "truncated or not a readable image .*TIFFReadEncodedTile",
    }
    files = sorted(path for path in (shared_data / "odd").iterdir() if path.suffix != ".xml")
    assert len(files) >= 15
    for path in files:
        if path.name in refused:
            with pytest.raises(UserError, match=refused[path.name]):
                read_both(path)
        else:
            check(path)
