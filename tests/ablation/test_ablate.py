"""Grids that train: one tiny run in this process, scheduling, and a grid that is killed three times."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from spectralmoe_jax.ablation.ablate import run_task
from spectralmoe_jax.ablation.grid import grid_runs, load_grid
from spectralmoe_jax.ablation.run import record_failure
from spectralmoe_jax.ablation.schedule import Share, divide_devices, run_all
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.evaluate import evaluate
from spectralmoe_jax.evaluation.stored_scores import write_evaluation
from spectralmoe_jax.inference.pictures import read_pictures
from spectralmoe_jax.inference.sliding_window import expert_maps
from tests.ablation.tiny_grid import STEPS, write_grid
from tests.fuzzing.test_run_files import EVALUATION

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> tuple[Path, Path]:
    """The file of the grid, and its folder with one run done and one failed."""
    folder = tmp_path_factory.mktemp("grid")
    file = write_grid(folder)
    assert run_task(str(file), folder / "runs", 0)
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        run_task(str(file), folder / "runs", 2)
    return file, folder / "runs"


def test_one_run_and_one_failure(grid, capsys, tmp_path):
    file, workdir = grid
    assert main(["ablate", str(file), "--workdir", str(workdir), "--collect"]) == 0
    results = json.loads((workdir / "results.json").read_text())
    (scores,) = results["variants"]["full"]["runs"]
    assert scores["step"] == STEPS
    assert [(entry["layer"], entry["modality"]) for entry in scores["nmi"]] == [
        (layer, modality) for layer in (1, 2, 3, 4) for modality in ("visual", "depth")
    ]
    (failed,) = results["variants"]["lost weights"]["runs"]
    assert "nowhere.safetensors" in failed["error"]
    assert results["variants"]["no depth"]["runs"] == [{"seed": 0}]
    assert results["images"] == 3
    assert "Failed:" in capsys.readouterr().out

    run = grid_runs(load_grid(str(file)), workdir)[0]
    report = evaluate(run.folder, run.config)  # what was kept is what `spectralmoe evaluate` says
    assert scores["miou"] == report["miou"]
    assert [entry["nmi"] for entry in scores["nmi"]] == [entry["nmi"] for entry in report["routing"]]
    assert run_task(str(file), workdir, 0)  # done is done
    assert len((run.folder / "attempts.jsonl").read_text().splitlines()) == 2


def test_pictures_show_the_predictions_of_the_model(grid):
    from data_pipelines.splits import open_splits
    from spectralmoe_jax.inference.predict_step import make_routed_step
    from spectralmoe_jax.inference.segmenter_weights import load_trained

    file, workdir = grid
    run = grid_runs(load_grid(str(file)), workdir)[0]
    scenes = read_pictures(run.folder)
    splits = open_splits(run.config)
    step = make_routed_step(load_trained(run.folder, run.config))
    assert [scene.name for scene in scenes] == [record.name for record in splits.target.records]
    for scene, (_, _, image, label) in zip(scenes, splits.examples("target"), strict=True):
        corners = [(r, c) for r in (0, 32) for c in (0, 32)]
        (row, column), = [(r, c) for r, c in corners
                          if (label[r : r + 32, c : c + 32] == scene.truth).all()][:1]  # fmt: skip
        maps = expert_maps(step, image[row : row + 32, column : column + 32], window=32, batch_size=2)
        np.testing.assert_array_equal(scene.experts, maps)
        assert scene.image.shape == (32, 32, 3)
        assert scene.prediction.max() < 6
        assert scene.depth_layers.tolist() == [1, 2, 4]
        assert scene.depth.shape == (3, 4, 4, 3)


def test_report_of_a_run_and_of_a_grid(grid, capsys):
    file, workdir = grid
    assert main(["ablate", str(file), "--workdir", str(workdir), "--collect"]) == 0
    run = workdir / "runs" / "full" / "seed0"
    (run / "evaluation.json").unlink()  # as after `spectralmoe train` alone
    assert main(["report", str(run)]) == 0
    assert (run / "evaluation.json").is_file()
    page = (run / "report.html").read_text()
    for heading in ("Curves", "Confusion on the target", "Depth features", "Experts over training"):
        assert heading in page
    assert main(["report", str(workdir), "--output", str(workdir / "grid.html")]) == 0
    page = (workdir / "grid.html").read_text()
    assert "lost weights</strong> failed: " in page
    assert "full (reference)" in page
    assert str(workdir / "grid.html") in capsys.readouterr().out


def test_frozen_encoders_without_weights_are_reported(tmp_path, monkeypatch, capsys):
    """Before anything runs, of the variants that adapt one, and of no other."""
    monkeypatch.setattr("spectralmoe_jax.ablation.ablate.run_all", lambda *_: True)
    arguments = ["ablate", "peers", "--seeds", "1", "--workdir"]
    assert main([*arguments, str(tmp_path / "random")]) == 1  # nothing was done
    first = capsys.readouterr().out.partition("\n")[0]
    names, _, note = first.removeprefix("note: ").partition(": ")
    assert set(names.split(", ")) >= {"spectral_moe", "none", "lora", "linear head"}
    assert "full" not in names.split(", ")
    assert "random weights" in note
    assert "config.model.visual.weights" in note
    main([*arguments, str(tmp_path / "given"), "--config.model.visual.weights=encoder.safetensors"])
    assert "random weights" not in capsys.readouterr().out


def test_devices_are_divided_evenly(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in divide_devices(None)] == [
        "0",
        "1",
        "2",
        "3",
    ]
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in divide_devices(2)] == ["0,1", "2,3"]
    with pytest.raises(UserError, match="--side-by-side = 3: must be a divisor of the 4 GPUs"):
        divide_devices(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert divide_devices(None) == [Share({})]
    for none in (0, -1):
        with pytest.raises(UserError, match=f"--side-by-side = {none}: must be at least 1"):
            divide_devices(none)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no choice of cores")
def test_cores_are_divided_between_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mine = os.sched_getaffinity(0)
    script = f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(str(os.sched_getaffinity(0)))"
    found = grid_runs(load_grid(str(write_grid(tmp_path))), tmp_path)[:1]
    run_all(found, [sys.executable, "-c", script], [Share({}, frozenset({min(mine)}))])
    assert (tmp_path / "seen").read_text() == str({min(mine)})
    assert os.sched_getaffinity(0) == mine

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3, 4, 6, 7})
    assert [share.cores for share in divide_devices(2)] == [{1, 3}, {4, 6, 7}]
    assert [share.cores for share in divide_devices(6)] == [None] * 6  # more than there are: all share all


CHILD = """
import pathlib, sys, time
here, number = pathlib.Path(sys.argv[1]), int(sys.argv[3])
(here / f"seen{number}").touch()
if number == 1:
    while not (here / "seen0").exists():
        time.sleep(0.01)
    sys.exit("error: it went wrong")
if number == 2:
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
while not (here / "seen1").exists():
    time.sleep(0.01)
(here / "evaluation.json").rename(here / "runs" / "full" / "seed0" / "evaluation.json")
"""


def test_runs_in_parallel_continue_past_failures(tmp_path, capsys):
    """The first two wait for each other; the last two fail, one by a signal."""
    found = grid_runs(load_grid(str(write_grid(tmp_path))), tmp_path)
    record_failure(found[2], "before")
    write_evaluation(EVALUATION | {"trained": 4}, tmp_path)
    assert run_all(found, [sys.executable, "-c", CHILD, str(tmp_path)], [Share({}), Share({})])
    said = capsys.readouterr().out
    assert "full, seed 0: done in" in said
    assert "no depth, seed 0: failed: it went wrong" in said
    assert "lost weights, seed 0: failed: killed by SIGKILL" in said
    assert not (found[0].folder / "failure.json").exists()


def test_seeds_run_in_order_and_share_compiled_programs(tmp_path, monkeypatch):
    """Every run finds the same folder for compiled programs, which is gone after, or the user's own."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    seen = tmp_path / "seen"
    script = (
        "import os, sys; folder = os.environ['JAX_COMPILATION_CACHE_DIR']\n"
        f"with open({str(seen)!r}, 'a') as file: print(sys.argv[2], os.path.isdir(folder), folder, file=file)"
    )
    found = grid_runs(load_grid(str(write_grid(tmp_path)), seeds=2), tmp_path)
    run_all(found, [sys.executable, "-c", script], [Share({})])
    lines = [line.split(" ", 2) for line in seen.read_text().splitlines()]
    assert [found[int(number)].seed for number, *_ in lines] == [0, 0, 0, 1, 1, 1]
    assert {there for _, there, _ in lines} == {"True"}
    (folder,) = {folder for *_, folder in lines}
    assert not Path(folder).exists()

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    run_all(found[:1], [sys.executable, "-c", script], [Share({})])
    assert seen.read_text().endswith(f"True {tmp_path}\n")


def test_sigterm_reaches_the_running_run(tmp_path, capsys):
    """The running one saves and ends; the next is not begun."""
    script = "import signal; print('ready', flush=True); signal.sigwait([signal.SIGTERM])"
    script = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); {script}"
    found = grid_runs(load_grid(str(write_grid(tmp_path))), tmp_path)

    ended = threading.Event()

    def stop():
        while "ready" not in _text(found[0].folder / "log.txt"):
            if ended.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    try:
        assert not run_all(found, [sys.executable, "-c", script], [Share({})])
    finally:
        ended.set()
        thread.join()
    assert "full, seed 0: interrupted; the same command resumes it" in capsys.readouterr().out
    assert not found[1].folder.exists()
    assert not (found[0].folder / "failure.json").exists()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_run_ends_when_its_grid_ends():
    script = (
        "from spectralmoe_jax.ablation.run import *; end_with_parent(); print(1, flush=True); time.sleep(99)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, **pipes)
    assert process.stdout.readline() == b"1\n"
    process.stdin.close()
    assert process.wait(timeout=30) == 75
    process.stdout.close()


def test_one_process_per_run(tmp_path, monkeypatch):
    file = write_grid(tmp_path)
    folder = grid_runs(load_grid(str(file)), tmp_path)[0].folder
    folder.mkdir(parents=True)
    monkeypatch.setattr("spectralmoe_jax.ablation.run._LOCK_SECONDS", 0.2)
    hold = (
        "import sys, time; from pathlib import Path; from spectralmoe_jax.one_writer import one_writer\n"
        "with one_writer(Path(sys.argv[1]), 'trains'): print(1, flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"1\n"
    try:
        with pytest.raises(UserError, match=f"process {holder.pid} on .* trains there since"):
            run_task(str(file), tmp_path, 0)
        assert [path.name for path in folder.iterdir()] == [".writer.json"]
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.slow
def test_results_are_the_same_after_three_random_kills(tmp_path):
    file = write_grid(tmp_path)

    def start(workdir: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "spectralmoe_jax", "ablate", str(file), "--workdir", workdir]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(str(tmp_path / "whole")).wait(timeout=900) == 1  # one variant fails, and is said to
    again = tmp_path / "again"
    wanted = sorted(random.sample(range(1, 2 * STEPS), 3))  # of the steps of the two that train
    print(f"killed after steps {wanted}")
    for steps in wanted:
        process = start(str(again))
        deadline = time.monotonic() + 300
        while _steps_logged(again) < steps and process.poll() is None:
            assert time.monotonic() < deadline, "the step was not logged in five minutes"
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(str(again)).wait(timeout=900) == 1
    expected, found = ((tmp_path / name / "results.json").read_bytes() for name in ("whole", "again"))
    assert found == expected
    assert json.loads(found)["variants"]["no depth"]["difference"]["mean"] is not None
    starts = [entry["starts"] for entry in json.loads((again / "timings.json").read_text()).values()]
    assert sum(starts) > len(starts)
    assert not [path for path in os.listdir(again) if path.startswith(".")]


def _steps_logged(workdir: Path) -> int:
    logs = (_text(path) for path in workdir.glob("runs/*/seed0/metrics.jsonl"))
    return sum(log.count('"kind": "train"') for log in logs)
