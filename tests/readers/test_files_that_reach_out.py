"""Rasters and vector files read no other files of the machine and no address, whatever they hold."""

import json
import os
import socket
import sqlite3
import threading

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioError

from data_pipelines.readers.raster_file import open_as_stored, read_pixels
from data_pipelines.readers.unreadable import UnreadableFile
from data_pipelines.readers.vector_file import read_attributes, read_layers
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_raster

PIXELS = np.random.default_rng(0).integers(0, 255, (16, 20, 1), dtype=np.uint8)
SECRET = b"a secret of this machine"


@pytest.fixture(scope="module")
def server():
    """The address of a server that counts requests, and their number so far."""
    listening = socket.create_server(("127.0.0.1", 0))
    requests = []

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            requests.append(connection.recv(99))
            connection.sendall(b"HTTP/1.1 404 no\r\nContent-Length: 0\r\n\r\n")
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/s.tif", requests
    listening.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of images beside a secret."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    (tmp_path / "secret").write_bytes(SECRET)
    write_raster(tmp_path / "outside.tif", PIXELS, **PLACE)
    (tmp_path / "images").mkdir()
    write_raster(tmp_path / "images/inside.tif", PIXELS, **PLACE)
    return tmp_path / "images"


def vrt(source, more="", relative=1, band=""):
    """A virtual raster of one band."""
    return (
        '<VRTDataset rasterXSize="20" rasterYSize="16">'
        + f'<VRTRasterBand dataType="Byte" band="1"{band}>{more}'
        + f'<SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename>'
        '<SourceBand>1</SourceBand><SrcRect xOff="0" yOff="0" xSize="20" ySize="16"/>'
        '<DstRect xOff="0" yOff="0" xSize="20" ySize="16"/></SimpleSource></VRTRasterBand></VRTDataset>'
    )  # fmt: skip


RAW = (
    '<VRTDataset rasterXSize="8" rasterYSize="1">'
    '<VRTRasterBand band="1" subClass="VRTRawRasterBand">'
    '<SourceFilename relativeToVRT="{}">{}</SourceFilename><ImageOffset>0</ImageOffset>'
    "<PixelOffset>1</PixelOffset><LineOffset>8</LineOffset></VRTRasterBand></VRTDataset>"
)
PYTHON = (
    "<PixelFunctionType>f</PixelFunctionType>"
    "<PixelFunctionLanguage>Python</PixelFunctionLanguage>"
    "<PixelFunctionCode><![CDATA[\ndef f(*a, **k):\n    open('{}', 'w')\n]]></PixelFunctionCode>"
)


def refused(path, *parts):
    """The error of a raster is one line that names it."""
    with pytest.raises((UserError, OSError)) as error:
        read_pixels(path)
    said = str(error.value)
    assert "\n" not in said
    assert all(part in said for part in (str(path), *parts)), said


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.vrt", "A.VRT", "a.img", "a"])
def test_a_virtual_raster_reads_neither_the_network_nor_other_folders(folder, server, name, monkeypatch):
    address, requests = server
    before = len(requests)
    path, secret = folder / name, folder.parent / "secret"
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    written = folder / "written"
    for text in (
        vrt(f"/vsicurl/{address}", relative=0),
        vrt(address, relative=0),
        vrt("../outside.tif"),
        vrt("link/../../outside.tif"),
        vrt(folder.parent / "outside.tif", relative=0),
        RAW.format(0, secret),
        RAW.format(1, "../secret"),
        vrt(f"/vsisubfile/0_10,{secret}", relative=0),
        vrt(f"GTIFF_DIR:1:{folder.parent}/outside.tif", relative=0),
        vrt(f"vrt://{folder.parent}/outside.tif", relative=0),
        vrt("inside.tif", PYTHON.format(written), band=' subClass="VRTDerivedRasterBand"'),
        vrt("inside.tif").replace("<SourceBand>", f"<SourceFilename>{secret}</SourceFilename><SourceBand>"),
        vrt("inside.tif").replace("<SimpleSource>", f"<SimpleSource SourceFilename='{secret}'>"),
        vrt("inside.tif").replace("<VRTDataset", f"<!DOCTYPE x [<!ENTITY y SYSTEM '{secret}'>]><VRTDataset"),
        vrt("inside.tif").replace("<SimpleSource>", "<sIMPLEsOURCE>").replace("inside.tif", "../outside.tif"),
        f"<GDAL_WMS><Service name='TMS'><ServerUrl>{address}</ServerUrl></Service></GDAL_WMS>",
        f"<GDALTileIndexDataset><IndexDataset>{secret}</IndexDataset></GDALTileIndexDataset>",
        json.dumps({"stac_version": "1.0.0", "type": "Feature", "assets": {"a": {"href": address}}}),
    ):  # fmt: skip
        path.write_text(str(text))
        refused(path)
    assert len(requests) == before
    assert not written.exists()


def test_a_virtual_raster_of_its_folder_is_read(folder, tmp_path, monkeypatch):
    (folder / "below").mkdir()
    write_raster(folder / "below/b.tif", PIXELS, **PLACE)
    for source in ("inside.tif", "below/b.tif", "./below/../inside.tif"):
        (folder / "a.vrt").write_text(vrt(source))
        np.testing.assert_array_equal(read_pixels(folder / "a.vrt")[0], PIXELS)
    # one that reads another, links to it, and its own links
    (folder / "b.vrt").write_text(vrt("a.vrt"))
    (tmp_path / "link.vrt").symlink_to(folder / "b.vrt")
    (folder / "link.tif").symlink_to(tmp_path / "outside.tif")
    (folder / "c.vrt").write_text(vrt("link.tif"))
    for path in (folder / "b.vrt", tmp_path / "link.vrt", folder / "c.vrt"):
        np.testing.assert_array_equal(read_pixels(path)[0], PIXELS)
    # other folders, if the user says so
    (folder / "a.vrt").write_text(vrt("../outside.tif"))
    refused(folder / "a.vrt", "'../outside.tif'", f"SPECTRALMOE_READ_FROM={tmp_path}")
    monkeypatch.setenv("SPECTRALMOE_READ_FROM", f"/nowhere{os.pathsep}{tmp_path}")
    np.testing.assert_array_equal(read_pixels(folder / "a.vrt")[0], PIXELS)


def test_what_gdal_writes_is_read(folder):
    """Also a warped one, with everything that GDAL knows of a raster in it."""
    from rasterio.shutil import copy
    from rasterio.vrt import WarpedVRT

    with rasterio.open(folder / "inside.tif", "r+") as file:
        file.nodata, file.scales, file.offsets, file.descriptions = 3, (2,), (1,), ("red",)
        file.update_tags(a="b")
        file.write_colormap(1, {1: (1, 2, 3, 255)})
        file.colorinterp = [rasterio.enums.ColorInterp.palette]
    copy(folder / "inside.tif", folder / "copy.vrt", driver="VRT")
    with rasterio.open(folder / "inside.tif") as file, WarpedVRT(file, crs="EPSG:4326") as warped:
        expected = warped.read()
        copy(warped, folder / "warped.vrt", driver="VRT")
    with open_as_stored(folder / "copy.vrt") as opened, rasterio.open(folder / "inside.tif") as file:
        np.testing.assert_array_equal(opened.read(), file.read())
        assert (opened.nodata, opened.scales, opened.descriptions) == (3, (2,), ("red",))
    with open_as_stored(folder / "warped.vrt") as opened:
        np.testing.assert_array_equal(opened.read(), expected)


def test_sources_are_rasters_that_exist(folder):
    (folder / "a.vrt").write_text(vrt("none.tif"))
    refused(folder / "a.vrt", "'none.tif'", "no file")
    (folder / "text.tif").write_text("no raster")
    (folder / "a.vrt").write_text(vrt("text.tif"))
    refused(folder / "a.vrt", "'text.tif'", "no raster")
    for name in ("hidden.tif", "hidden.bin"):
        (folder / name).write_text(vrt("../outside.tif"))
        (folder / "hidden.hdr").write_text(
            "ENVI\nsamples = 20\nlines = 16\nbands = 1\ndata type = 1\ninterleave = bsq\n"
        )
        (folder / "a.vrt").write_text(vrt(name))
        refused(folder / "a.vrt", name)
    (folder / "a.vrt").write_text(vrt("a.vrt"))
    refused(folder / "a.vrt", "in turn")
    for text in ("", "<VRTDataset", "<VRTDataset/>x", "<other/>", "\0", "<a>" * 100_000):
        (folder / "a.vrt").write_text(text)
        with pytest.raises((UnreadableFile, RasterioError)):
            read_pixels(folder / "a.vrt")


@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".OVR", ".Msk"])
def test_side_files_are_rasters_themselves(folder, server, suffix):
    address, requests = server
    before = len(requests)
    side = folder / f"inside.tif{suffix}"
    for text in (vrt(f"/vsicurl/{address}", relative=0), vrt("../outside.tif")):
        side.write_text(text)
        refused(folder / "inside.tif", suffix)
        side.unlink()
    assert len(requests) == before
    with rasterio.open(folder / "inside.tif", "r+") as file:
        file.write_mask(np.arange(320).reshape(16, 20) % 2 == 0)  # beside the file, as GDAL does
    assert read_pixels(folder / "inside.tif")[0].shape == PIXELS.shape


@pytest.mark.parametrize("place", ["beside", "in the file", "in the overviews"])
def test_named_overviews_lie_beside(folder, server, place):
    address, requests = server
    before = len(requests)
    path = folder / "inside.tif"
    name = f"/vsicurl/{address}"
    if place == "beside":
        item = f"<Metadata domain='OVERVIEWS'><MDI key='OVERVIEW&#95;FILE'>{name}</MDI></Metadata>"
        (folder / "inside.tif.aux.xml").write_text(f"<PAMDataset>{item}</PAMDataset>")
    else:
        target = path if place == "in the file" else folder / "inside.tif.ovr"
        write_raster(target, PIXELS, **PLACE)
        with rasterio.open(target, "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=name)
    with pytest.raises(UserError, match="overviews"):
        read_pixels(path)
    assert len(requests) == before


@pytest.mark.parametrize("name", ["f.geojson", "f.json", "f.kml", "f.gpkg", "f.shp", "f.fgb", "f.parquet"])
def test_vector_files_hold_their_shapes(folder, server, name):
    address, requests = server
    before = len(requests)
    (folder.parent / "secret.csv").write_text("a,b\nsecret,2\n")
    for text in (
        f"<OGRVRTDataSource><OGRVRTLayer name='x'><SrcDataSource>{folder.parent}/secret.csv</SrcDataSource>"
        "<SrcLayer>secret</SrcLayer></OGRVRTLayer></OGRVRTDataSource>",
        f"<OGRVRTDataSource><OGRVRTLayer name='x'><SrcDataSource>/vsicurl/{address}</SrcDataSource>"
        "</OGRVRTLayer></OGRVRTDataSource>",
        f"<kml/><OGRVRTDataSource><SrcDataSource>{folder.parent}/secret.csv</SrcDataSource></OGRVRTDataSource>",
        f"<OGRWFSDataSource><URL>{address}</URL></OGRWFSDataSource>",
        f"/vsicurl/{address}", address,
    ):  # fmt: skip
        (folder / name).write_text(text)
        for read in (read_layers, read_attributes):
            with pytest.raises(UserError) as error:
                read(folder / name)
            assert "\n" not in str(error.value)
    assert len(requests) == before


def test_a_database_reads_no_other_files(folder):
    base = sqlite3.connect(folder / "f.gpkg")
    base.execute("CREATE TABLE x (a TEXT)")
    base.execute("PRAGMA writable_schema = 1")
    statement = "CREATE VIRTUAL TABLE y USING VirtualOGR('/etc/passwd')"
    base.execute(
        "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql) VALUES ('table', 'y', 'y', 0, ?)",
        (statement,),
    )
    base.commit()
    base.close()
    with pytest.raises(UserError, match="read other files"):
        read_layers(folder / "f.gpkg")
