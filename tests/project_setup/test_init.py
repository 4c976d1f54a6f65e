"""`spectralmoe init` on a small folder: the configuration, the picture, the printed command, the errors."""

import os
import shlex
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import rasterio

import spectralmoe_jax
from data_pipelines.splits import open_splits
from data_pipelines.survey.ambiguity import Ambiguous
from spectralmoe_jax.cli.data import Init
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.project_setup.init import Options, settle
from tests.project_setup.folders import NAMES, write_folder

GIVEN = ("--target", "south", "--ignore", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """The configuration of the folder, written from the command line."""
    output = tmp_path_factory.mktemp("written") / "my.py"
    assert main(["init", str(folder), "--output", str(output), *GIVEN]) == 0
    return output


def pixels_of(folder, place, kind):
    return np.stack([rasterio.open(path).read() for path in sorted((folder / place / kind).glob("*.tif"))])


def test_what_the_configuration_says(folder, written):
    config = load_config(str(written))
    assert (config.name, config.bands, config.sensor) == ("my", NAMES, None)
    assert (config.data.source, config.data.target) == (("north",), ("south",))
    assert (config.data.image_glob, config.data.mask_template) == (
        "{domain}/images/*.tif", "{domain}/labels/{stem}.tif",
    )  # fmt: skip
    assert (config.data.label_values, config.data.ignore_values) == ((1, 2, 3), (0,))
    source = pixels_of(folder, "north", "images")  # (images, bands, H, W)
    np.testing.assert_allclose(config.model.pixel_mean, source.mean(axis=(0, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(config.model.pixel_std, source.std(axis=(0, 2, 3)), rtol=1e-3)
    splits = open_splits(config)
    assert len(splits.train) == 1
    assert len(splits.holdout) == 1


def test_the_file_is_short_and_commented(written):
    lines = written.read_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 110
    assert sum("#" in line for line in lines) >= 5


def test_the_picture(written):
    picture = cv2.imread(str(written.with_suffix(".png")))
    assert picture is not None
    colours = {tuple(c) for c in load_config(str(written)).classes.palette}
    for red, green, blue in colours:
        assert (picture == (blue, green, red)).all(axis=-1).any()


def test_what_is_printed(folder, written, tmp_path, capsys, monkeypatch):
    """A table with the shares of the labels, and a command that parses as it stands."""
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(folder), "--output", "a b.py", *GIVEN, "--classes", "soil,grass,wood"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    labels = np.concatenate([pixels_of(folder, place, "labels").ravel() for place in ("north", "south")])
    for value, name in enumerate(("soil", "grass", "wood"), 1):
        assert f"{name} ({value}) {(labels == value).mean():.2%}" in printed
    assert f"{(labels == 0).mean():.2%} of the pixels; ignored: 0" in printed
    _, _, command = printed.partition("next: ")
    words = shlex.split(command)
    assert words[:2] == ["spectralmoe", "train"]
    given = []
    result = {"workdir": "", "best": None, "step": 1}
    monkeypatch.setattr(spectralmoe_jax, "train", lambda *run: given.append(run) or result, raising=False)
    assert main(words[1:]) == 0
    ((config, workdir),) = given
    assert config.classes.names == ("soil", "grass", "wood")
    assert str(workdir) == "runs/a b"


def test_from_python(folder, tmp_path):
    config = spectralmoe_jax.init_config(folder, tmp_path / "my.py", target="sou*", ignore="none")
    assert config == load_config(str(tmp_path / "my.py"))
    assert config.data.label_values == (0, 1, 2, 3)
    with pytest.raises(UserError, match="must be one of images, labels"):
        spectralmoe_jax.init_config(folder, tmp_path / "more.py", targets=("south",))


def test_questions_are_asked_in_turn(folder):
    answers = {"--target": "south", "--ignore": "0"}
    asked = []

    def ask(question: Ambiguous) -> str:
        asked.append(question.option)
        return answers[question.option]

    found = settle(str(folder), Options(), ask)
    assert asked == ["--target", "--ignore"]
    assert (found.target, found.classes.ignored) == (("south",), (0,))


def test_at_a_terminal(folder, tmp_path, monkeypatch, capsys):
    lines = iter(("south\n", "\n"))
    terminal = SimpleNamespace(isatty=lambda: True, readline=lambda: next(lines))
    monkeypatch.setattr("sys.stdin", terminal)
    assert main(["init", str(folder), "--output", str(tmp_path / "my.py")]) == 2
    said = capsys.readouterr()
    assert "2 domains (north, south)" in said.out
    assert "0 may mean 'no label'" in said.err  # not answered
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), "2 domains (north, south): say which of them to test on, and never to train on, with --target"),
        (("--target", "south"), "0 may mean 'no label': give its value, or none if all are classes, with"),
        (("--target", "east"), "--target east: no such domain, there are north, south"),
        (("--target", "*"), "--target or --source names all 2 domains: leave one out"),
        (("--target", "south", "--source", "south"), "--source and --target both name south"),
        ((*GIVEN, "--sensor", "landsat"), "config.sensor = 'landsat': must be one of"),
        ((*GIVEN, "--sensor", "orbita_ohs"), "orbita_ohs has no band 'blue': correct --sensor or --bands"),
        ((*GIVEN, "--bands", "red,swir16"), "no band 'swir16'"),
        ((*GIVEN, "--classes", "a,b"), "--classes a,b: 2 names for 3 classes (1, 2, 3)"),
        ((*GIVEN, "--images", "*/pictures/*.tif"), "no image matches data.image_glob='*/pictures/*.tif'"),
        ((*GIVEN, "--labels", "{domain}/masks/{stem}.tif"), "it has no labels"),
        ((*GIVEN, "--attribute", "kind"), "--attribute and --layer are for polygons"),
        ((*GIVEN, "--encoder", "resnet50"), "--encoder = 'resnet50': must be one of dinov3_s"),
        ((*GIVEN, "--encoder", "depth_anything_v2_s"), "is a depth encoder"),
        ((*GIVEN, "--encoder", "softcon_s"), "config.model.visual.kind = 'softcon' needs the band B01"),
        ((*GIVEN, "--weights", "a.pth"), "--weights: they are those of an encoder: give --encoder, too"),
        ((*GIVEN, "--config.train.steps=3"), "spectralmoe init has no configuration"),
        ((*GIVEN, "--targt", "x"), "did you mean --target?"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_write_nothing(folder, tmp_path, capsys, given, expected):
    assert main(["init", str(folder), "--output", str(tmp_path / "my.py"), *given]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert expected in said.err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced(folder, tmp_path, capsys):
    for name, existing in {"my.py": "my.py", "other.py": "other.png"}.items():
        (tmp_path / existing).write_text("mine")
        assert main(["init", str(folder), "--output", str(tmp_path / name), *GIVEN]) == 2
        assert "exists, and is not replaced: give another name" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "my.py": "mine",
        "other.png": "mine",
    }
    for output, expected in {"my.txt": "ends in .py", "none/my.py": "no such folder"}.items():
        assert main(["init", str(folder), "--output", str(tmp_path / output), *GIVEN]) == 2
        assert expected in capsys.readouterr().err


def test_a_single_domain(folder, tmp_path, capsys):
    given = ("--images", "north/images/*.tif", "--labels", "north/labels/{stem}.tif")
    assert main(["init", str(folder), "--output", str(tmp_path / "my.py"), *GIVEN, *given]) == 2
    assert (
        "all 2 images are of one domain, north, and a run needs another to test on" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "name",
    ["galileo_nano", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dofa_b", "dinov3_l", "sam_b"))],
)
def test_a_frozen_encoder(folder, tmp_path, capsys, name):
    output = tmp_path / "my.py"
    assert (
        main(
            [
                "init",
                str(folder),
                "--output",
                str(output),
                *GIVEN,
                "--sensor",
                "planetscope",
                "--encoder",
                name,
            ]
        )
        == 0
    )
    config = load_config(str(output))
    assert (config.model.visual.preset, config.model.visual.trainable) == (name, False)
    assert config.data.crop % config.model.visual.patch_size == 0
    printed = capsys.readouterr().out
    if name == "galileo_nano":
        assert config.model.visual.weights == "hf://nasaharvest/galileo/models/nano"
        assert "next: spectralmoe train" in printed
    else:
        assert "docs/checkpoints.md" in output.read_text()
        assert "next: spectralmoe data" in printed


@pytest.mark.slow
def test_weights_of_an_encoder(folder, tmp_path, capsys):
    given = ("--encoder", "dofa_b", "--weights", "dofa.pth", "--sensor", "planetscope")
    assert main(["init", str(folder), "--output", str(tmp_path / "my.py"), *GIVEN, *given]) == 0
    assert load_config(str(tmp_path / "my.py")).model.visual.weights == "dofa.pth"
    assert "next: spectralmoe train" in capsys.readouterr().out


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["init", "--help"])
    printed = capsys.readouterr().out
    assert all(option in printed for option, _, _ in Init._OPTIONS)


def test_names_that_are_no_text(folder, tmp_path, capsys):
    """Folders, files and outputs whose names are bytes that are not UTF-8."""
    odd = os.fsdecode(b"b\xff")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/north").symlink_to(folder / "north")
    (tmp_path / f"root/{odd}").symlink_to(folder / "south")
    (tmp_path / odd).symlink_to(folder)
    for root, output in (("root", "my.py"), (odd, "my.py"), (folder, f"{odd}.py")):
        assert (
            main(["init", str(tmp_path / root), "--output", str(tmp_path / output), "--target", "north"]) == 2
        )
        said = capsys.readouterr().err
        assert "b\\udcff" in said
        assert said.endswith("is not UTF-8, and cannot be in a configuration: rename it\n")
        assert said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"root", odd}


def test_a_trial_of_two_steps(written):
    """The warm-up has to be shortened with the run, as the file says."""
    shorter = {"train.steps": 2, "train.evaluate_every": 2, "train.checkpoint_every": 2}
    assert (
        "config.train.warmup_steps = 30  # fewer than steps: a trial of 2 steps needs 0"
        in written.read_text()
    )
    with pytest.raises(UserError, match=r"train\.warmup_steps = 30: must be between 0 and 1") as error:
        load_config(str(written)).replaced(shorter)
    assert "\n" not in str(error.value)
    assert load_config(str(written)).replaced({**shorter, "train.warmup_steps": 0}).train.steps == 2
