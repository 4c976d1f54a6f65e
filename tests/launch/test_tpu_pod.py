"""launch/tpu_pod.sh: commands of a dry run, commands that run, and rejected arguments."""

import re
import shlex
import subprocess

import pytest

from tests.launch.conftest import ROOT

POD = ("--name", "pod-1", "--zone", "us-central2-b")
TPUS = ["gcloud", "compute", "tpus"]
WHERE = ["--zone=us-central2-b"]
SSH = [*TPUS, "tpu-vm", "ssh", "pod-1", *WHERE]
KIND = ("--type", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite")
TRAINING = ("--", "--config", "configs/dubai.py", "--workdir", "/mnt/shared/it's here")


def pod(machine, action, *options, **environment):
    return machine.run("launch/tpu_pod.sh", action, *options, **environment)


def commands(machine, action, *options):
    """What is printed in a dry run, which has to be what is called without."""
    printed = pod(machine, action, *POD, "--dry-run", *options)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert machine.calls == []
    assert pod(machine, action, *POD, *options).returncode == 0
    lines = [shlex.split(line) for line in printed.stdout.splitlines()]
    made = [
        re.sub(r"(/spectralmoe\.)\w{6}(?=/)", r"\1XXXXXX", word) for call in machine.calls for word in call
    ]
    assert made == [word for line in lines for word in line]
    return lines


@pytest.mark.parametrize(
    ("action", "options", "expected"),
    [
        (
            "create",
            KIND,
            [[*TPUS, "tpu-vm", "create", "pod-1", *WHERE, "--accelerator-type=v5litepod-16",
              "--version=v2-alpha-tpuv5-lite"]],
        ),
        (
            "create",
            (*KIND, "--queued", "--spot", "--project", "p"),
            [[*TPUS, "queued-resources", "create", "pod-1", "--node-id=pod-1", *WHERE, "--project=p",
              "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]],
        ),
        ("tail", (), [[*SSH, "--worker=0", "--command=tail -n 100 -F train.log"]]),
        ("tail", ("--worker", "3"), [[*SSH, "--worker=3", "--command=tail -n 100 -F train.log"]]),
        ("stop", (), [[*SSH, "--worker=all", "--command=kill -TERM $(cat train.pid)"]]),
        ("delete", (), [[*TPUS, "tpu-vm", "delete", "pod-1", *WHERE, "--quiet"]]),
        ("delete", ("--queued",),
         [[*TPUS, "queued-resources", "delete", "pod-1", *WHERE, "--force", "--quiet"]]),
    ],
)  # fmt: skip
def test_commands(machine, action, options, expected):
    assert commands(machine, action, *options) == expected


def test_install_copies_the_last_commit_to_every_worker(machine):
    archive, copy, install = commands(machine, "install", "--nfs", "10.0.0.2:/runs")
    assert archive[0] == "git"
    assert archive[-1] == "HEAD"
    packed = archive[-2].removeprefix("--output=")
    assert copy == [*TPUS, "tpu-vm", "scp", packed, "pod-1:spectralmoe.tar.gz", *WHERE, "--worker=all"]
    assert install[:-1] == [*SSH, "--worker=all"]
    assert "venv/bin/pip install -q './spectralmoe[tpu]'" in install[-1]
    assert "sudo mount -t nfs '10.0.0.2:/runs' /mnt/shared" in install[-1]


def test_status(machine):
    queued, slice_, workers = commands(machine, "status", "--queued")
    assert queued[3:5] == ["queued-resources", "describe"]
    assert slice_[3:5] == ["tpu-vm", "describe"]
    assert workers[:-1] == [*SSH, "--worker=all"]


def test_a_failing_command_ends_the_script(machine):
    assert pod(machine, "install", *POD, FAIL_ON="scp").returncode == 1
    assert [call[0] for call in machine.calls] == ["git", "gcloud"]


def test_a_worker_starts_one_detached_training(machine, tmp_path):
    [run] = commands(machine, "run", *TRAINING)
    assert run[:-1] == [*SSH, "--worker=all"]
    command = run[-1].removeprefix("--command=")
    launch = tmp_path / "home" / "spectralmoe" / "launch"
    launch.mkdir(parents=True)
    (launch / "local.sh").write_text('#!/bin/sh\nprintf "%s\\n" "$@"; exec sleep 60\n')
    (launch / "local.sh").chmod(0o755)
    home = tmp_path / "home"

    def on_worker(command):
        environment = machine.environment | {"HOME": str(home)}
        return subprocess.run(["bash", "-c", command], cwd=home, env=environment,
                              capture_output=True, text=True, timeout=30, check=False)  # fmt: skip

    assert on_worker(command).returncode == 0
    try:
        again = on_worker(command)
        assert (again.returncode, again.stdout) == (1, "already running: stop it first\n")
        log = home / "train.log"
        on_worker(f"until [ -s {log} ]; do sleep 0.05; done")
        assert log.read_text().splitlines() == list(TRAINING[1:])
    finally:
        stop = pod(machine, "stop", *POD, "--dry-run").stdout
        assert on_worker(shlex.split(stop)[-1].removeprefix("--command=")).returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "'' is not an action: give one of create install run status tail stop delete"),
        (("destroy",), "'destroy' is not an action"),
        (("create",), "create: missing --name (or POD_NAME) --zone (or POD_ZONE)"),
        (("create", *POD), "create: missing --type (or POD_TYPE) --version (or POD_VERSION)"),
        (("create", "--name", "--zone"), "--name needs a value"),
        (("create", "--zone"), "--zone needs a value"),
        (("tail", "--name", "Pod 1", "--zone", "z"), "--name Pod 1: give lower-case letters"),
        (("tail", *POD, "--wrker", "1"), "--wrker is not an option"),
        (("install", *POD, "--nfs", "/runs"), "--nfs /runs: give HOST:/SHARE"),
        (("install", *POD, "--nfs", "-oexec:/runs"), "--nfs -oexec:/runs: give HOST:/SHARE"),
        (("install", *POD, "--nfs", "h:/a\nb"), "--nfs h:/a?b: give HOST:/SHARE"),
        (("install", *POD, "--python", "python3.8"), "--python python3.8: give python3.11 or newer"),
        (("tail", "--name", "n", "--zone", "-z"), "--zone -z: give lower-case letters"),
        (("tail", "--name", "a\nb", "--zone", "z"), "--name a?b: give lower-case letters"),
        (("tail", "--name", "-n", "--zone", "z"), "--name -n: give lower-case letters"),
        (("tail", *POD, "--worker", "0 --command=x"), "--worker 0 --command=x: give a whole number, or all"),
        (("tail", *POD, "--worker", "$(id)"), "--worker $(id): give a whole number, or all"),
        (("tail", *POD, "--project", "-p"), "--project -p: give the identifier of a project"),
        (("create", *POD, "--type", "-t", "--version", "v"), "--type -t: give letters"),
        (("create", *POD, "--type", "t", "--version", "v 1"), "--version v 1: give letters"),
        (("install", *POD, "--python", "python2"), "--python python2: give python3.11 or newer"),
        (
            ("run", *POD, "--config", "c.py"),
            "--config is not an option; put the training's arguments after --",
        ),
        (("run", *POD, "--", "--config=c.py"), "run: give the training's --workdir after --"),
        (("run", *POD, "--", "--workdir", "w"), "run: give the training's --config after --"),
        (("stop", *POD, "--", "x"), "stop takes nothing after --"),
    ],
)
def test_bad_input_is_one_line(machine, words, expected):
    done = machine.run("launch/tpu_pod.sh", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: tpu_pod.sh: {expected}")
    assert machine.calls == []


def test_values_from_the_environment(machine):
    done = pod(
        machine,
        "create",
        "--dry-run",
        POD_NAME="n",
        POD_ZONE="z",
        POD_TYPE="t",
        POD_VERSION="v",
        POD_PROJECT="p",
    )
    assert (
        done.stdout
        == "gcloud compute tpus tpu-vm create n --zone=z --project=p --accelerator-type=t --version=v\n"
    )


HOSTILE = (
    "h:/x' /mnt ; } ; touch {ran} ; { echo '",
    "h:/$(touch {ran})",
    "h:/`touch {ran}`",
    'h:/a b"&|;<>*',
)


def on_a_worker(command, folder):
    """Run what a worker would, with programs of the system that only note what they are called with."""
    programs = folder / "worker"
    programs.mkdir()
    for name in ("sudo", "mountpoint", "python3.11", "tar", "nohup", "setsid"):
        code = (
            "exit 1"
            if name == "mountpoint"
            else f'printf "%s\\037" "$@" >>{folder}/noted; echo >>{folder}/noted'
        )
        (programs / name).write_text(f"#!/bin/sh\n{code}\n")
        (programs / name).chmod(0o755)
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "pip").symlink_to("/bin/true")
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=False,
                          capture_output=True, text=True, timeout=30)  # fmt: skip


@pytest.mark.parametrize("share", HOSTILE)
def test_a_share_reaches_a_worker_as_one_word(machine, tmp_path, share):
    share = share.replace("{ran}", str(tmp_path / "ran"))
    [*_, install] = commands(machine, "install", "--nfs", share)
    done = on_a_worker(install[-1].removeprefix("--command="), tmp_path)
    assert done.returncode == 0, done.stderr
    calls = [line.split("\x1f")[:-1] for line in (tmp_path / "noted").read_text().splitlines()]
    assert ["mount", "-t", "nfs", share, "/mnt/shared"] in calls
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text", ['it\'s "$(touch ran)" `touch ran`', "a\nb", "--x=;touch ran", "", "*", "~", "\\"]
)
def test_arguments_reach_a_worker_whole(machine, tmp_path, text):
    printed = pod(machine, "run", *POD, "--dry-run", "--", "--config", "c.py", "--workdir", text)
    command = shlex.split(printed.stdout)[-1].removeprefix("--command=")
    (tmp_path / "spectralmoe").mkdir()
    done = on_a_worker(f"{command}; wait", tmp_path)
    assert done.returncode == 0, done.stderr
    called = (tmp_path / "noted").read_text().split("\x1f")[:-1]
    assert called == ["setsid", "launch/local.sh", "--config", "c.py", "--workdir", text]
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_the_archive_follows_no_link_and_is_removed(machine, tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "temporary"
    folder.mkdir()
    victim.write_text("precious")
    for name in ("spectralmoe-pod-1.tar.gz", "spectralmoe.tar.gz", "spectralmoe"):
        (folder / name).symlink_to(victim)
    (tmp_path / "programs" / "git").unlink()  # the real one writes
    assert pod(machine, "install", *POD, TMPDIR=str(folder)).returncode == 0
    assert victim.read_text() == "precious"
    assert len(list(folder.iterdir())) == 3
    assert [call[0] for call in machine.calls] == ["gcloud", "gcloud"]


def test_no_temporary_folder_is_one_line(machine, tmp_path):
    done = pod(machine, "install", *POD, TMPDIR=str(tmp_path / "none"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: tpu_pod.sh: TMPDIR = ")
