"""From runs to tables, on handwritten runs."""

import csv
import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from spectralmoe_jax.ablation.ablate import write_results
from spectralmoe_jax.ablation.grid import Grid, grid_runs
from spectralmoe_jax.ablation.results import collect
from spectralmoe_jax.ablation.run import ATTEMPTS_FILE, check_folder, is_done, record_failure
from spectralmoe_jax.ablation.tables import latex_table, markdown_table
from spectralmoe_jax.config.stored import save_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import ImageCounts, Tally, write_images
from spectralmoe_jax.evaluation.score_table import make_report, write_report
from spectralmoe_jax.evaluation.stored_scores import EVALUATION_FILE, IMAGES_FILE
from spectralmoe_jax.training.logging import METRICS_FILE

NAMES = ["field", "wood & water"]
SKILL = {"full": (0.9, 0.8, 0.85), "one_expert": (0.6, 0.5), "50 % less": ()}


def finish(run, skill: float, images: int = 6, trained: int | None = None) -> float:
    """Leaves in a run's folder what judging it leaves; returns its mIoU."""
    run.folder.mkdir(parents=True)
    tally = Tally(NAMES)
    right = round(100 * skill)
    for i in range(images):
        counts = np.array([[right + i, 100 - right], [100 - right, right + 5 * i]])
        tally.images.append(ImageCounts("north" if i < 3 else "south", f"image {i}", counts))
    trained = run.config.train.steps if trained is None else trained
    report = make_report(tally) | {"trainable": 1234, "step": 9, "trained": trained}
    write_images(tally.images, run.folder / IMAGES_FILE)
    write_report(report, run.folder / EVALUATION_FILE)
    return report["miou"]


@pytest.fixture
def grid() -> Grid:
    variants = {name: {"model.adapter.top_k": i + 1} for i, name in enumerate(SKILL)}
    return Grid("configs/quickstart.py", variants, "full", title="By hand")


@pytest.fixture
def found(grid, tmp_path):
    return grid_runs(grid, tmp_path)


def test_means_differences_and_failures(grid, found):
    scores = {}
    for run in found:
        if run.seed < len(SKILL[run.variant]):
            scores[run.variant, run.seed] = finish(run, SKILL[run.variant][run.seed])
    record_failure(found[5], "out of memory")
    results = collect(grid, found)
    full = [scores["full", seed] for seed in range(3)]
    one = [scores["one_expert", seed] for seed in range(2)]
    variants = results["variants"]
    assert variants["full"]["miou"] == {
        "mean": pytest.approx(statistics.mean(full)), "std": pytest.approx(statistics.stdev(full)), "runs": 3,
    }  # fmt: skip
    assert variants["full"]["difference"] is None
    difference = variants["one_expert"]["difference"]  # over the two seeds that both have
    by_seed = [a - b for a, b in zip(one, full, strict=False)]
    assert difference["by_seed"] == pytest.approx(by_seed)
    assert difference["mean"] == pytest.approx(statistics.mean(by_seed))
    low, high = difference["interval"]
    assert low < difference["mean"] < high < 0
    assert variants["one_expert"]["runs"][2] == {"seed": 2, "error": "out of memory"}
    assert variants["50 % less"]["runs"] == [{"seed": seed} for seed in range(3)]
    assert variants["50 % less"]["miou"] == {"mean": None, "std": None, "runs": 0}
    assert variants["50 % less"]["difference"] is None
    assert results["images"] == 6


def test_written_files(grid, found, tmp_path):
    scores = [finish(run, SKILL[run.variant][run.seed]) for run in found[:5]]
    record_failure(found[5], "config.x_y = 3: 50 % too much & more")
    (found[0].folder / ATTEMPTS_FILE).write_text(
        '{"what": "started", "time": 5.0, "host": "h", "processors": 2}\n'
        '{"what": "started", "time": 10.0, "host": "h", "processors": 2}\n'
        '{"what": "done", "time": 12.5, "host": "h", "processors": 2}\n'
    )
    results = write_results(grid, found, tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {path.name for path in first} == {
        "results.json", "timings.json", "grid.json", "table.md", "table.tex", "table.csv",
        "runs.csv",
    }  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert json.loads((tmp_path / "timings.json").read_text()) == {
        "full, seed 0": {"seconds": 2.5, "starts": 2, "host": "h", "processors": 2}
    }
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}.{kind}" for name in ("scores", "classes") for kind in ("png", "pdf")
    }
    write_results(grid, found, tmp_path)
    assert {path: path.read_bytes() for path in first} == first

    shown = list(csv.reader((tmp_path / "table.csv").open()))
    assert shown[0][3:5] + shown[0][-2:] == ["mIoU", "± std", "difference", "95 % interval"]
    assert [row[0] for row in shown[1:]] == list(SKILL)
    assert shown[1][3:5] == [f"{100 * f(scores[:3]):.2f}" for f in (statistics.mean, statistics.stdev)]
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert len(rows) == 9
    assert float(rows[3]["miou"]) == results["variants"]["one_expert"]["runs"][0]["miou"]
    assert rows[3]["iou wood & water"]
    assert rows[5]["error"] == "config.x_y = 3: 50 % too much & more"

    lines = [line for line in markdown_table(results).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0] == (
        "| variant | trainable | runs | mIoU | ± std | mIoU north | mIoU south | difference | 95 % interval |"
    )
    assert lines[2].startswith(f"| **full** | 1,234 | 3/3 | {100 * statistics.mean(scores[:3]):.2f} |")
    assert lines[4] == "| 50 % less | - | 0/3 | - | - | - | - | - | - |"
    assert "- one_expert: config.x_y = 3: 50 % too much & more" in markdown_table(results)

    body = [line for line in latex_table(results).splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {8}
    assert body[2].startswith(r"one\_expert & 1,234 & 2/3 & ")
    assert body[3].startswith(r"50 \% less & - & 0/3")
    assert "$-" in body[2]


def test_held_out_scores_stand_beside_the_targets(grid, found):
    """Those of the checkpoint that is scored, step 9, as the run logged them."""
    for run, score in zip(found[:2], (0.75, 0.65), strict=True):
        finish(run, 0.9)
        records = [
            {"step": 6, "kind": "evaluate", "miou": 0.1},
            {"step": 9, "kind": "train", "loss": 1.0},
            {"step": 9, "kind": "evaluate", "miou": score},
            {"step": 12, "kind": "evaluate", "miou": 0.5},
        ]
        (run.folder / METRICS_FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    finish(found[2], 0.9)  # which held nothing out
    results = collect(grid, found)
    assert results["variants"]["full"]["held_out"] == {
        "mean": pytest.approx(0.7), "std": pytest.approx(statistics.stdev((0.75, 0.65))), "runs": 2
    }  # fmt: skip
    lines = markdown_table(results).splitlines()
    assert "| runs | held-out | mIoU |" in lines[2]
    assert "| 3/3 | 70.00 |" in lines[4]


def test_results_of_earlier_versions_are_still_shown(grid, found):
    """They have no held-out scores, and intervals over images alone."""
    for run in found[:4]:
        finish(run, 0.9 - 0.1 * run.number)
    results = collect(grid, found)
    assert "interval over images and seeds." in markdown_table(results)
    del results["bootstrap"]["over"]
    for variant in results["variants"].values():
        del variant["held_out"]
    shown = markdown_table(results)
    assert "interval over images." in shown
    assert "held-out" not in shown


def test_a_seed_of_the_held_out_images(grid):
    """`seeded` keys differ between runs as the seed does, whatever the base says."""
    several = dataclasses.replace(grid, seeded=("data.holdout_seed",))
    configs = [several.config("full", seed, ["--config.data.holdout_seed=7"]) for seed in (0, 4)]
    assert [(config.seed, config.data.holdout_seed) for config in configs] == [(0, 0), (4, 4)]
    assert grid.config("full", 4).data.holdout_seed == 0


def test_a_run_evaluated_before_its_end_is_not_done(grid, found):
    """`spectralmoe report` judges whatever checkpoint there is."""
    steps = found[0].config.train.steps
    finish(found[0], 0.9, trained=steps - 1)
    finish(found[1], 0.9, trained=steps)
    assert [is_done(run) for run in found[:3]] == [False, True, False]
    assert ["miou" in run for run in collect(grid, found)["variants"]["full"]["runs"]] == [False, True, False]
    stored = found[0].folder / EVALUATION_FILE
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"complete": True}))  # by patience
    assert is_done(found[0])


def test_a_grid_without_finished_runs(grid, found, tmp_path):
    results = write_results(grid, found, tmp_path)
    assert results["classes"] == []
    assert "| **full** | - | 0/3 |" in markdown_table(results)
    assert not (tmp_path / "plots").exists()


def test_runs_on_other_images_are_not_compared(grid, found):
    finish(found[0], 0.9)
    finish(found[3], 0.9, images=5)
    with pytest.raises(UserError, match="'one_expert' and 'full' were evaluated on different images"):
        collect(grid, found)


def test_a_folder_of_other_settings_is_refused(grid, found, tmp_path):
    run = found[0]
    run.folder.mkdir(parents=True)
    save_config(run.config, run.folder / "config.json")
    check_folder(run)
    (moved,) = [c for c in grid_runs(grid, tmp_path, ["--config.data.workers=3"]) if c.number == 0]
    check_folder(moved)  # where data lies and how it is read may change
    (other,) = [c for c in grid_runs(grid, tmp_path, ["--config.train.steps=70"]) if c.number == 0]
    with pytest.raises(UserError, match=r"runs/full/seed0 holds a run of other settings: config\.train\.st"):
        check_folder(other)


def test_a_folder_of_another_grid_is_refused(grid, found, tmp_path, capsys):
    from spectralmoe_jax.cli.main import main

    write_results(grid, found, tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    assert main(["ablate", "experts", "--workdir", str(tmp_path), "--collect"]) == 2
    assert "holds another grid, 'By hand': choose another --workdir" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_grid_without_a_folder(tmp_path, capsys):
    from spectralmoe_jax.cli.main import main

    missing = str(tmp_path / "missing")
    assert main(["ablate", "experts", "--workdir", missing, "--collect"]) == 2
    assert "missing does not exist: run the grid first" in capsys.readouterr().err
    assert main(["ablate", "experts", "--workdir", missing, "--list", "--seeds", "1"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed == [str(Path(missing) / "runs" / f"E_=_{n}" / "seed0") for n in range(1, 13)]
    assert main(["ablate", "experts", "--workdir", missing, "--task", "36"]) == 2
    assert "--task = 36: must be the number of a run, 0 to 35" in capsys.readouterr().err
    assert main(["ablate", "experts", "--workdir", missing, "--only", "E = 99"]) == 2
    assert "--only = 'E = 99': must be one of E = 1, E = 2" in capsys.readouterr().err
    assert not Path(missing).exists()
