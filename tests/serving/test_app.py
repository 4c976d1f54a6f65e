"""The application in this process: answers beside the model's own maps, and one line for what is wrong."""

import asyncio
import contextlib
import json
import math
import threading
import time
import warnings

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.io import MemoryFile
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform_geom
from shapely.geometry import shape

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from starlette.testclient import TestClient

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.model import Model
from spectralmoe_jax.models.build import segmenter_config
from spectralmoe_jax.serving import request_body, service
from spectralmoe_jax.serving.app import make_app
from spectralmoe_jax.serving.geojson import count_corners
from spectralmoe_jax.serving.limits import Limits
from tests.random_weights import random_segmenter
from tests.rasters import write_raster
from tests.serving.images import UTM, file_of, pixels_of
from tests.tiny_run import SIZES

TINY = [
    *(size for size in SIZES if not size.startswith("model.head")), "model.head.kind=linear",
    "bands=red,green,blue", "model.pixel_mean=100,100,100", "model.pixel_std=60,60,60",
]  # fmt: skip
TIFF, PNG = {"Content-Type": "image/tiff"}, {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def model():
    config = load_config("configs/quickstart.py", [f"--config.{value}" for value in TINY])
    return Model(random_segmenter(segmenter_config(config)), config)


@pytest.fixture(scope="module")
def client(model):
    with TestClient(make_app(model, Limits(queue=4, max_mb=0.2, max_megapixels=0.1))) as client:
        yield client


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "maps").mkdir()
    return tmp_path


def own_map(model, folder, data):
    """The map that `spectralmoe predict` writes."""
    (folder / "scene").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.map(folder / "scene", folder / "maps" / "map.tif")
        with rasterio.open(folder / "maps" / "map.tif") as dataset:
            return dataset.read(1), (folder / "maps" / "map.tif").read_bytes()


def said(response, status):
    """The one line of an answer that refuses."""
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert "\n" not in detail
    assert "/tmp" not in detail
    return detail


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_geotiff(client, model, folder, dtype):
    """The file that `predict` writes, byte for byte; pixels without data included."""
    pixels = pixels_of(50, 40, dtype=dtype)
    pixels[:9, :20] = 0
    data = file_of(folder, pixels, nodata=0)
    wanted, file = own_map(model, folder, data)
    assert 255 in wanted
    assert len(np.unique(wanted)) > 2
    answer = client.post("/predict", content=data, headers=TIFF)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/tiff")
    assert answer.content == file
    valid = wanted != 255
    np.testing.assert_array_equal(wanted[valid], model.predict(pixels)[valid])


def test_png_in_and_png_out(client, model, folder):
    """Numbers of classes with the colours of the palette."""
    data = file_of(folder, pixels_of(30, 32), "PNG")
    wanted, _ = own_map(model, folder, data)
    answer = client.post("/predict?format=png", content=data, headers=PNG)
    assert answer.headers["content-type"] == "image/png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with MemoryFile(answer.content) as file, file.open(driver="PNG") as picture:
            np.testing.assert_array_equal(picture.read(1), wanted)
            table = picture.colormap(1)
    assert [table[number] for number in range(6)] == [(*colour, 255) for colour in model.palette]
    assert table[255][3] == 0  # transparent


def test_geojson(client, model, folder):
    """Burnt into the grid of the scene, the polygons are the map; areas are those of the classes."""
    pixels = pixels_of(50, 40)
    pixels[:9, :20] = 0
    data = file_of(folder, pixels, nodata=0)
    wanted, _ = own_map(model, folder, data)
    answer = client.post("/predict", content=data, headers=TIFF | {"Accept": "application/geo+json"})
    assert answer.headers["content-type"] == "application/geo+json"
    found = answer.json()
    assert set(found) == {"type", "features"}
    with rasterio.open(folder / "maps" / "map.tif") as dataset:
        crs, transform = dataset.crs, dataset.transform
    burnt, areas = [], np.zeros(6)
    for feature in found["features"]:
        number, name = feature["properties"]["class"], feature["properties"]["name"]
        assert name == model.classes[number]
        outline = shape(feature["geometry"])
        assert outline.is_valid
        assert outline.exterior.is_ccw
        assert not any(hole.is_ccw for hole in outline.interiors)
        longitude, latitude = outline.centroid.coords[0]
        assert (14.9 < longitude < 15.1, 45 < latitude < 46) == (True, True)
        back = transform_geom("EPSG:4326", crs, feature["geometry"])
        areas[number] += shape(back).area / 100
        burnt.append((back, number))
    grid = rasterize(burnt, wanted.shape, fill=255, transform=transform, dtype="uint8")
    np.testing.assert_array_equal(grid, wanted)
    counts = np.bincount(wanted[wanted != 255], minlength=6)
    np.testing.assert_allclose(areas, counts, atol=0.01)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "image/tiff"),
        ("image/*", "image/tiff"),
        ("application/json", "application/geo+json"),
        ("image/tiff;q=0.1, image/png;q=0.9", "image/png"),
        ("text/html, image/png;q=0.5, */*;q=0.1", "image/png"),
    ],
)
def test_accept(client, folder, accept, media):
    data = file_of(folder, pixels_of(20, 20))
    answer = client.post("/predict", content=data, headers=TIFF | {"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, media)


def test_formats_that_do_not_exist(client, folder):
    """Refused before the image is looked at."""
    data = file_of(folder, pixels_of(20, 20))
    detail = said(client.post("/predict", content=data, headers=TIFF | {"Accept": "text/html"}), 406)
    assert "image/tiff" in detail
    detail = said(client.post("/predict?format=jpg", content=data, headers=TIFF), 422)
    assert "format = 'jpg'" in detail
    assert "geojson" in detail


@pytest.mark.parametrize(
    ("headers", "part"),
    [
        ({"Content-Type": "text/plain"}, "image/tiff"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, "the image itself"),
        ({"Content-Type": "image/tiff", "Content-Encoding": "gzip"}, "as it is"),
    ],
)
def test_bodies_that_are_no_images_by_their_headers(client, headers, part):
    assert part in said(client.post("/predict", content=b"II*\0", headers=headers), 415)


def test_bodies_that_are_no_images(client, folder):
    assert "empty" in said(client.post("/predict", content=b"", headers=TIFF), 422)
    assert "neither GeoTIFF" in said(client.post("/predict", content=b"an image", headers=TIFF), 422)
    assert "complete" in said(client.post("/predict", content=b"II*\0broken", headers=TIFF), 422)
    data = file_of(folder, pixels_of(64, 64))
    assert "truncated" in said(client.post("/predict", content=data[:9000], headers=TIFF), 422)


def test_images_for_another_model(client, folder):
    two = file_of(folder, pixels_of(20, 20, bands=2))
    detail = said(client.post("/predict", content=two, headers=TIFF), 422)
    assert detail.startswith("image: 2 bands")
    values = pixels_of(20, 20).astype(np.float32)
    values[3, 4, 1] = np.inf
    detail = said(client.post("/predict", content=file_of(folder, values), headers=TIFF), 422)
    assert "band 2 (green) is not finite at row 3, column 4" in detail
    picture = file_of(folder, pixels_of(20, 20), "PNG")
    detail = said(client.post("/predict?format=geojson", content=picture, headers=PNG), 422)
    assert "CRS" in detail


def test_images_that_name_other_files(client, folder):
    """A VRT would show other files of this machine."""
    secret = folder / "secret.tif"
    secret.write_bytes(file_of(folder, pixels_of(20, 20)))
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><ColorInterp>{colour}</ColorInterp><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource>"
        "</VRTRasterBand>"
        for band, colour in enumerate(("Red", "Green", "Blue"), 1)
    )
    vrt = f'<VRTDataset rasterXSize="20" rasterYSize="20">{bands}</VRTDataset>'.encode()
    (folder / "scene.vrt").write_bytes(vrt)
    with rasterio.open(folder / "scene.vrt") as dataset:
        assert dataset.read().any()  # GDAL reads it
    assert "neither" in said(client.post("/predict", content=vrt, headers=TIFF), 422)
    disguised = b"\xff\xd8\xff\xfe" + vrt
    assert "cannot be read" in said(client.post("/predict", content=disguised, headers=TIFF), 422)


def test_images_that_are_too_large(client, model, folder):
    assert "0.2 MB" in said(client.post("/predict", content=bytes(300_000), headers=TIFF), 413)
    pieces = (bytes(50_000) for _ in range(6))  # sent without a length
    assert "0.2 MB" in said(client.post("/predict", content=pieces, headers=TIFF), 413)
    bomb = file_of(folder, np.zeros((400, 300, 3), np.uint8), compress="deflate")
    assert "400 x 300 pixels" in said(client.post("/predict", content=bomb, headers=TIFF), 413)
    wide = file_of(folder, np.zeros((1, 9000, 3), np.uint8), compress="deflate")
    assert "1 x 9000 pixels" in said(client.post("/predict", content=wide, headers=TIFF), 413)


def test_an_image_in_one_enormous_block(model, folder):
    """30000 x 3000 pixels of three bands decode at once; the file has some kilobytes."""
    path = folder / "strip.tif"
    profile = {"driver": "GTiff", "height": 3000, "width": 30_000, "count": 3, "dtype": "uint16"}
    layout = {"interleave": "pixel", "blockysize": 3000, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(path, "w", **profile, **layout):
        pass
    with TestClient(make_app(model, Limits(max_megapixels=100))) as client:
        detail = said(client.post("/predict", content=path.read_bytes(), headers=TIFF), 422)
    assert "cannot hold them" in detail


def test_a_row_of_windows_that_is_too_large(model, folder):
    """700,000 x 32 pixels of scores of six classes take 538 MB; no pixel has data, and the file is small."""
    path = folder / "row.tif"
    profile = {"driver": "GTiff", "height": 1, "width": 700_000, "count": 3, "dtype": "uint8", "nodata": 0}
    layout = {"tiled": True, "compress": "deflate", "sparse_ok": True}
    with rasterio.open(path, "w", **profile, **layout):
        pass
    assert 4 * 6 * 32 * 700_000 > 2**29
    with TestClient(make_app(model, Limits(max_megapixels=100))) as client:
        detail = said(client.post("/predict", content=path.read_bytes(), headers=TIFF), 413)
    assert "700000 pixels wide" in detail
    assert "538 MB" in detail


@pytest.mark.parametrize(
    "profile",
    [
        {"crs": CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')},
        {"transform": from_origin(1e15, 1e15, 10, 10)},
        {"transform": Affine(math.nan, 0, 0, 0, 1e-3, 0)},
        {"transform": Affine(1e308, 0, 1e308, 0, 1e308, 0)},
    ],
)
def test_places_that_are_not_on_earth(client, folder, profile):
    data = file_of(folder, pixels_of(20, 20), **profile)
    detail = said(client.post("/predict?format=geojson", content=data, headers=TIFF), 422)
    assert "ask for tif or png" in detail


def test_a_description_that_is_no_text(client, folder):
    path = write_raster(folder / "image.tif", pixels_of(20, 20), **UTM)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("redX", "green", "blue")
    data = path.read_bytes()
    broken = data.replace(b"redX", b"r\xff\xfeX")
    assert "not UTF-8" in said(client.post("/predict", content=broken, headers=TIFF), 422)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_values(client, folder, dtype):
    data = file_of(folder, pixels_of(20, 20, dtype=dtype))
    assert "complex" in said(client.post("/predict", content=data, headers=TIFF), 422)


def test_an_error_that_nobody_expects(model, folder, monkeypatch, caplog):
    """One line for the client, and what it was for the log."""

    def fail(*_):
        raise ZeroDivisionError("of /tmp/secret")

    monkeypatch.setattr(service, "answer_image", fail)
    data = file_of(folder, pixels_of(20, 20))
    with TestClient(make_app(model), raise_server_exceptions=False) as client:
        assert "failed" in said(client.post("/predict", content=data, headers=TIFF), 500)
    assert "ZeroDivisionError: of /tmp/secret" in caplog.text


def in_process(app, receive, headers=()):
    """The status and the body of an answer to POST /predict, with a body received as a test wants."""
    sent = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/predict", "raw_path": b"/predict", "root_path": "",
        "query_string": b"", "headers": [(b"content-type", b"image/tiff"), *headers],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip

    async def send(message):
        sent.append(message)

    async def ask():
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)

    asyncio.run(asyncio.wait_for(ask(), 30))
    status = next(message["status"] for message in sent if "status" in message)
    return status, b"".join(message.get("body", b"") for message in sent)


def test_a_body_that_comes_too_slowly(model):
    """Some bytes at a time, for ever."""

    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"II", "more_body": True}

    status, body = in_process(make_app(model, Limits(timeout=0.3)), receive)
    assert status == 408
    assert "0.3 s" in json.loads(body)["detail"]


def test_a_refused_body_without_an_end(model, monkeypatch):
    """The rest is received for a while, so that the client reads the answer, and no longer."""
    monkeypatch.setattr(request_body, "_LINGER", 0.3)
    received = []

    async def receive():
        received.append(await asyncio.sleep(0.001))
        return {"type": "http.request", "body": bytes(1000), "more_body": True}

    status, _ = in_process(make_app(model, Limits(max_mb=0.01)), receive)
    assert status == 413
    assert len(received) > 20


def test_a_client_that_waits_for_leave_to_send(model):
    """Expect: 100-continue with a length that is too large: refused before any of the body is sent."""

    async def receive():
        pytest.fail("the body was asked for")

    headers = [(b"content-length", b"99000000"), (b"expect", b"100-continue")]
    assert in_process(make_app(model, Limits(max_mb=1)), receive, headers)[0] == 413


@pytest.fixture
def file_limit():
    """A limit on the size of files stands in for the full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(client, folder, file_limit):
    """No fault of the image: for its body, and for its map."""
    large = file_of(folder, pixels_of(40, 40))
    small = file_of(folder, np.zeros((40, 40, 3), np.uint8), compress="deflate")
    assert len(small) < 1000
    file_limit(1000)
    assert "no room" in said(client.post("/predict", content=large, headers=TIFF), 500)
    assert "write the map" in said(client.post("/predict", content=small, headers=TIFF), 500)
    file_limit(100_000)
    assert client.post("/predict", content=large, headers=TIFF).status_code == 200


class Held:
    """A model that waits for leave."""

    def __init__(self, model):
        self.leave, self.calls, self.model = threading.Event(), 0, model

    def __call__(self, tiles):
        self.calls += 1
        assert self.leave.wait(30)
        return self.model.predictor(tiles)

    def await_call(self):
        until = time.monotonic() + 20
        while not self.calls:
            assert time.monotonic() < until
            time.sleep(0.005)


@contextlib.contextmanager
def held_client(model, **limits):
    """A client of an application whose model waits, and the model."""
    held = Held(model)
    with TestClient(make_app(model.with_predictor(held), Limits(**limits))) as client:
        try:
            yield client, held
        finally:
            held.leave.set()


def test_a_full_queue(model, folder):
    """Two places: the third request is refused at once, and is mapped when a place is free again."""
    data = file_of(folder, pixels_of(20, 20))
    wanted = own_map(model, folder, data)[1]
    with held_client(model, queue=2) as (client, held):
        answers = []
        ask = lambda: answers.append(client.post("/predict", content=data, headers=TIFF))
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        held.await_call()
        until = time.monotonic() + 20
        while client.app.state.service._slots._value:
            assert time.monotonic() < until
            time.sleep(0.005)
        refused = client.post("/predict", content=data, headers=TIFF)
        assert "try again" in said(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/healthz").json() == {"status": "ok"}
        held.leave.set()
        for thread in threads:
            thread.join()
        assert [answer.content for answer in answers] == [wanted] * 2
        assert client.post("/predict", content=data, headers=TIFF).content == wanted


def test_a_map_that_is_not_ready_in_time(model, folder):
    data = file_of(folder, pixels_of(20, 20))
    with held_client(model, timeout=0.3, queue=1) as (client, held):
        assert "0.3 s" in said(client.post("/predict", content=data, headers=TIFF), 504)
        held.leave.set()
        until = time.monotonic() + 20  # its place is free once its thread has given up
        while (answer := client.post("/predict", content=data, headers=TIFF)).status_code == 429:
            assert time.monotonic() < until
        assert answer.status_code in (200, 504)


def test_many_clients_get_their_own_maps(client, model, folder):
    """Windows of several requests share calls; every answer is that of its own image."""
    data = [file_of(folder, pixels_of(20 + 3 * seed, 25, seed=seed)) for seed in range(4)]
    wanted = [own_map(model, folder, each)[1] for each in data]
    answers = {}

    def ask(number):
        answers[number] = client.post("/predict", content=data[number % 4], headers=TIFF)

    for _ in range(3):
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(4):
            assert answers[number].content == wanted[number]


def test_info(client, model):
    info = client.get("/info").json()
    assert info["bands"] == ["red", "green", "blue"]
    assert [entry["name"] for entry in info["classes"]] == list(model.classes)
    assert [tuple(entry["colour"]) for entry in info["classes"]] == list(model.palette)
    assert info["pixel_mean"] == [100, 100, 100]
    assert info["limits"] == {"queue": 4, "max_mb": 0.2, "max_megapixels": 0.1, "timeout": 60}
    assert info["window"] == 32


def test_openapi(client):
    """The description names every path and answer; its page loads nothing from elsewhere."""
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/healthz", "/info"}
    predict = described["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) >= {"image/tiff", "image/png"}
    assert set(predict["responses"]["200"]["content"]) == {"image/tiff", "image/png", "application/geo+json"}
    assert {"406", "408", "413", "415", "422", "429", "504"} <= set(predict["responses"])
    page = client.get("/docs")
    for part in ("/predict", "/healthz", "/info", "429", "geojson"):
        assert part in page.text
    assert "<script" not in page.text
    assert "//" not in page.text
    assert client.get("/").text == page.text


def test_a_model_without_colours(model):
    config = model.config.replaced({"classes.palette": None})
    with pytest.raises(UserError, match=r"config\.classes\.palette is missing"):
        make_app(Model(model.segmenter, config))


def test_corners():
    """A square has four; one more of two squares that touch is a corner of both."""
    classes = np.full((6, 6), 1, np.uint8)
    assert count_corners(classes) == 4
    classes[2:4, 2:4] = 2
    assert count_corners(classes) == 8
    classes[4:5, 4:5] = 2
    assert count_corners(classes) == 11
