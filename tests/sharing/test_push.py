"""Publishing a run: what would be uploaded, what the card says, and that it loads to the bit."""

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard, constants

import spectralmoe_jax
from spectralmoe_jax.ablation.results import image_interval
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.published import without_folders
from spectralmoe_jax.config.stored import read_run_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import read_images
from spectralmoe_jax.evaluation.stored_scores import write_evaluation
from spectralmoe_jax.sharing import push as pushing
from spectralmoe_jax.sharing.model_card import Facts, write_model_card
from spectralmoe_jax.training.train import train
from tests.inference.test_model import TINY, image_of

TARGET = "hf://lab/fields"
LICENCE = ["--licence", "cc-by-4.0"]


class NoHub:
    def __init__(self, *_, **__):
        raise AssertionError("a dry run asked the hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps."""
    workdir = tmp_path_factory.mktemp("secret") / "fields"
    more = ["data.scenes_target=2", "train.ema=0.9"]
    config = load_config("configs/quickstart.py", [f"--config.{value}" for value in [*TINY, *more]])
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """The folder that would be uploaded, with scores."""
    folder = tmp_path_factory.mktemp("pushed") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "HfApi", NoHub)
        assert main(["push", str(run), TARGET, *LICENCE, "--evaluate", "--dry-run", str(folder)]) == 0
    return folder


def test_the_folder(written, run):
    assert sorted(file.name for file in written.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    for file in written.iterdir():
        assert str(run.parent).encode() not in file.read_bytes()  # folders of this machine
    stored = json.loads((written / "config.json").read_text())["configuration"]
    given = json.loads((run / "config.json").read_text())
    assert stored["train"] == given["train"]
    assert stored["classes"] == given["classes"]


def test_the_metadata_of_the_card(written):
    data = ModelCard.load(written / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "cc-by-4.0", "spectralmoe-jax", "image-segmentation",
    )  # fmt: skip
    assert {"remote-sensing", "spectral_moe"} <= {*data.tags}
    (result,) = data.eval_results
    assert (result.metric_type, result.dataset_name) == ("mean_iou", "quickstart")


def test_the_sections_of_the_card(written, run):
    text = (written / "README.md").read_text()
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert found == ["fields", "Use", "Data", "Scores", "Licence", "Configuration"]
    assert "averaged over the steps with decay 0.9" in text
    report = json.loads((run / "evaluation.json").read_text())
    for name, value in report["all"]["iou"].items():
        assert f"| {name} | {'-' if value is None else f'{100 * value:.1f}'} |" in text
    images = np.stack([image.counts for image in read_images(run / "evaluation.npz")])
    low, high = image_interval(images)
    assert f"| all pixels | {100 * report['miou']:.1f} | {100 * low:.1f} to {100 * high:.1f} |" in text
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert f'spectralmoe_jax.load("{TARGET}")' in block
    compile(block, "README.md", "exec")


def test_the_interval_of_two_images():
    """A draw has one of them twice, in a quarter of the draws each, or both: the ends are among the three."""
    counts = np.array([[[8, 2], [0, 0]], [[1, 3], [2, 4]]])
    ious = [8 / 10, 0.0], [1 / 6, 4 / 9], [9 / 16, 4 / 11]  # hits by union, by hand; the last of both
    means = [np.mean(pair) for pair in ious]
    np.testing.assert_allclose(image_interval(counts), (min(means), max(means)), rtol=1e-12)
    assert image_interval(counts[:1]) is None


def put_in_cache(cache, folder):
    root = cache / "models--lab--fields"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("c0ffee")
    shutil.copytree(folder, root / "snapshots" / "c0ffee")


def test_what_was_pushed_predicts_the_same_bits(written, run, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    put_in_cache(tmp_path / "cache", written)
    ours, pushed = spectralmoe_jax.load(run), spectralmoe_jax.load(TARGET)
    image = image_of(48, 40)
    np.testing.assert_array_equal(pushed.scores(image), ours.scores(image))
    assert pushed.classes == ours.classes
    assert np.ptp(ours.scores(image)) > 0


class Hub:
    """Stands in for the hub's client, and keeps what it is asked."""

    asked: list = []  # noqa: RUF012 (emptied by the fixture)
    exists = False
    is_private = True
    refuses = ""

    def __init__(self, token):
        assert token == "secret"

    def repo_exists(self, repository):
        return self.exists

    def repo_info(self, repository):
        return SimpleNamespace(private=self.is_private)

    def create_repo(self, repository, *, private, exist_ok):
        self.asked.append(("create", repository, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.refuses:
            raise PermissionError(self.refuses)
        files = {file.name: file.read_bytes() for file in folder_path.iterdir()}
        self.asked.append(("upload", repo_id, files, commit_message))
        return SimpleNamespace(commit_url="https://hub.example/lab/fields/commit/1")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(pushing, "is_reachable", lambda url: True)
    monkeypatch.setattr(Hub, "asked", [])
    return Hub


def test_upload(hub, written, run, capsys):
    given = ["--private", "--message", "first"]
    assert main(["push", str(run), TARGET, *LICENCE, *given]) == 0
    assert f"{TARGET}: https://hub.example/lab/fields/commit/1" in capsys.readouterr().out
    created, (what, repository, files, message) = hub.asked
    assert created == ("create", "lab/fields", True, False)
    assert (what, repository, message) == ("upload", "lab/fields", "first")
    assert files == {file.name: file.read_bytes() for file in written.iterdir()}


def test_a_repository_that_exists(hub, run, capsys, monkeypatch):
    monkeypatch.setattr(Hub, "exists", True)
    assert refused(capsys, str(run), TARGET) == (
        "hf://lab/fields: exists already; choose another name, or add --overwrite for a new commit"
    )
    assert hub.asked == []
    done = spectralmoe_jax.push(run, TARGET, licence="mit", overwrite=True)
    assert done.startswith(TARGET)
    assert hub.asked[0] == ("create", "lab/fields", False, True)


def refused(capsys, *given, licence=LICENCE):
    """The one line of a refusal."""
    assert main(["push", *given, *licence]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("spectralmoe: ").removeprefix("error: ")


def test_refusals_of_the_hub(hub, run, capsys, monkeypatch):
    monkeypatch.setattr(Hub, "refuses", "403 Forbidden:\nno write token")
    assert "the hub refused (403 Forbidden: no write token); the same command" in refused(
        capsys, str(run), TARGET
    )
    monkeypatch.setattr(pushing, "is_reachable", lambda url: False)
    assert "the hub is out of reach; write the folder with --dry-run" in refused(capsys, str(run), TARGET)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "no token of the hub: set HF_TOKEN or run" in refused(capsys, str(run), TARGET)
    assert [what for what, *_ in hub.asked] == ["create"]


def test_no_network(run, monkeypatch):
    """With the client's own request, to a name that does not exist."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    place = "https://hub.invalid/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
    with pytest.raises(UserError, match="the hub is out of reach"):
        spectralmoe_jax.push(run, TARGET, licence="mit")


def test_bad_input_is_one_line(run, tmp_path, capsys):
    dry = ["--dry-run", str(tmp_path / "model")]
    assert "without a revision or a file" in refused(capsys, str(run), "lab/fields", *dry)
    assert "without a revision or a file" in refused(capsys, str(run), "hf://lab/fields@main", *dry)
    assert "is no folder of a run" in refused(capsys, str(tmp_path), TARGET, *dry)
    assert "--licence" in refused(capsys, str(run), TARGET, *dry, licence=[])
    assert "give one name" in refused(capsys, str(run), TARGET, *dry, licence=["--license", " "])
    (tmp_path / "there").mkdir()
    assert "exists already" in refused(capsys, str(run), TARGET, "--dry-run", str(tmp_path / "there"))
    assert not (tmp_path / "model").exists()


def test_scores_of_another_checkpoint(run, written, tmp_path):
    shutil.copytree(run, tmp_path / "fields")
    report = json.loads((run / "evaluation.json").read_text())
    write_evaluation(report | {"step": 1}, tmp_path / "fields")
    with pytest.raises(
        UserError, match=r"are of step 1, and the best checkpoint is of step 2: add --evaluate"
    ):
        spectralmoe_jax.push(tmp_path / "fields", TARGET, licence="mit", dry_run=tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fields"]


def test_licences_and_a_run_without_scores(run):
    """A licence that the hub does not list, and the weights of an encoder under their own."""
    visual = {"source": "hf://meta/encoder@v1", "licence": "DINOv3 License", "preset": "dinov3_l"}
    facts = Facts("lab/fields", "DINOv3", read_run_config(run), {}, {"encoders": {"visual": visual}}, 2, 2,
                  None, None, None, ())  # fmt: skip
    card = ModelCard(write_model_card(facts))
    assert (card.data.license, card.data.license_name, card.data.base_model) == (
        "other",
        "DINOv3",
        ["meta/encoder"],
    )
    assert "visual encoder (dinov3_l from hf://meta/encoder@v1): DINOv3 License." in card.text
    assert "not scored on target images" in card.text
    listed = ModelCard(write_model_card(dataclasses.replace(facts, licence="MIT")))
    assert (listed.data.license, listed.data.license_name) == ("mit", None)


def test_paths_are_cut_to_their_last_part():
    given = {"root": "/home/me/data", "list": ["~/a.pth", "b/c", "hf://x/y"], "n": 3}
    assert without_folders(given) == {"root": "data", "list": ["a.pth", "b/c", "hf://x/y"], "n": 3}


def test_names_that_look_like_paths_stay():
    named = {"classes": {"names": ["../../a", "~b", "/c", "d, /e"]}, "bands": ["/nir"]}
    flat = {"classes.names": ["../../a", "~b"], "data.file_bands": ["/nir"]}
    assert without_folders({"given": [named, flat]}) == {"given": [named, flat]}


@pytest.mark.parametrize(
    ("value", "stays"),
    [
        ("a.safetensors,/home/alice/secret/b.safetensors", "a.safetensors,b.safetensors"),
        ("/home/alice/a.pth, ~/secret/b.pth;/c/d.pth", "a.pth,b.pth;d.pth"),
        ("a.pth, /home/alice/b.pth", "a.pth,b.pth"),
        ("/home/alice/my data, old/x.tif", "x.tif"),
        ("root=/home/alice/data,b.tif", "root=data,b.tif"),
        ("visual=/home/alice/a.pth,depth=/home/alice/b.pth", "visual=a.pth,depth=b.pth"),
        ("band:/home/alice/x", "band:x"),
        ("see /home/alice/x", "see x"),
        ("file:///home/alice/x.tif", "x.tif"),
        ("a,file:///home/alice/x.tif,b", "a,x.tif,b"),
        ("../../home/alice/x.tif", "x.tif"),
        ("runs/../../alice/x.tif", "x.tif"),
        ("https://user:tok@host/x.tif?sig=a/b&c=d", "https://host/x.tif"),
        ("https://user:t,k@host/x.tif#part", "https://host/x.tif"),
        ("https://h/a?sig=1,https://u@h/b?sig=2,/home/c", "https://h/a,https://h/b,c"),
        ("/vsicurl/https://user:tok@host/x.tif?sig=a/b", "x.tif"),
        ("s3://bucket/key/x.tif", "s3://bucket/key/x.tif"),
        ("hf://meta/encoder@v1", "hf://meta/encoder@v1"),
        ("/home/alice/data/", "data"),
        ("/home/alice/img_?.tif", "img_?.tif"),
    ],
)
def test_paths_and_secrets_within_a_value(value, stays):
    assert without_folders(value) == stays


@pytest.mark.parametrize(
    "value",
    ["water / river", "red/green", "and/or, either/or", "a, b and c", "~10 m", "./a/b", "1.5", "a..b",
     "x = 3", "images/*/*.tif", "configs/a.py:crop=512", "(.*)/kernel$"],
)  # fmt: skip
def test_what_is_no_path_stays(value):
    assert without_folders(value) == value


def test_a_repository_that_is_public(hub, run, capsys, monkeypatch):
    """Asked for a private one, nothing is published into it: before scores, and after its creation."""
    monkeypatch.setattr(Hub, "is_private", False)
    said = "is public; make it private on the hub, choose another name, or leave out --private"
    assert said in refused(capsys, str(run), TARGET, "--private")  # made by another, in between
    assert [what for what, *_ in hub.asked] == ["create"]
    monkeypatch.setattr(Hub, "exists", True)
    monkeypatch.setattr(pushing, "evaluate_best_checkpoint", lambda *_: pytest.fail("scored"))
    assert said in refused(capsys, str(run), TARGET, "--private", "--overwrite", "--evaluate")
    assert [what for what, *_ in hub.asked] == ["create"]


def test_a_destination_is_refused_before_scores(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pushing, "evaluate_best_checkpoint", lambda *_: pytest.fail("scored"))
    given = [str(run), TARGET, "--evaluate", "--dry-run"]
    assert "exists already" in refused(capsys, *given, str(tmp_path))
    assert "no such folder" in refused(capsys, *given, str(tmp_path / "none" / "model"))


def test_the_card_has_the_average_of_the_checkpoint(run, tmp_path):
    """The configuration may have changed since."""
    for name, given in (("none", None), ("other", 0.5)):
        shutil.copytree(run, tmp_path / name)
        stored = json.loads((run / "config.json").read_text())
        stored["train"]["ema"] = given
        (tmp_path / name / "config.json").write_text(json.dumps(stored))
        (tmp_path / name / "evaluation.json").unlink(missing_ok=True)
        spectralmoe_jax.push(tmp_path / name, TARGET, licence="mit", dry_run=tmp_path / f"{name}-model")
        text = (tmp_path / f"{name}-model/README.md").read_text()
        assert "averaged over the steps with decay 0.9." in text
