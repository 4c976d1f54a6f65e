"""launch/gke_jobset.yaml: fields, types, and what `find_cluster` reads in the environment of each pod."""

import copy
import math
import re

import jsonschema
import pytest
import yaml

from spectralmoe_jax.parallel import distributed
from spectralmoe_jax.parallel.distributed import Cluster, find_cluster
from tests.launch.conftest import ROOT

SCHEMA = yaml.safe_load((ROOT / "tests" / "launch" / "jobset_schema.yaml").read_text())
MANIFEST = ROOT / "launch" / "gke_jobset.yaml"
JOBSETS = {document["metadata"]["labels"]["accelerator"]: document
           for document in yaml.safe_load_all(MANIFEST.read_text())}  # fmt: skip
VOLUME = yaml.safe_load((ROOT / "launch" / "gke_volume.yaml").read_text())


def job_of(jobset):
    [replicated] = jobset["spec"]["replicatedJobs"]
    # Pods of a second job would have the process numbers of the first.
    assert replicated["replicas"] == 1
    return replicated["name"], replicated["template"]["spec"]


def container_of(jobset):
    [container] = job_of(jobset)[1]["template"]["spec"]["containers"]
    return container


def environments(jobset):
    """The environment of every pod, as Kubernetes, JobSet and GKE make it."""
    name, (job, spec) = jobset["metadata"]["name"], job_of(jobset)
    hosts = [f"{name}-{job}-0-{index}.{name}" for index in range(spec["completions"])]
    for index in range(spec["completions"]):
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/replicatedjob-name": job,
        }
        environment = {"JOB_COMPLETION_INDEX": str(index), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
        for entry in container_of(jobset)["env"]:
            if "value" in entry:
                environment[entry["name"]] = entry["value"]
            else:
                path = entry["valueFrom"]["fieldRef"]["fieldPath"]
                environment[entry["name"]] = labels[re.fullmatch(r"metadata\.labels\['(.*)'\]", path)[1]]
        if "google.com/tpu" in container_of(jobset)["resources"]["limits"]:
            environment |= {"TPU_WORKER_ID": str(index), "TPU_WORKER_HOSTNAMES": ",".join(hosts)}
        yield environment


def test_one_for_each_accelerator():
    assert sorted(JOBSETS) == ["gpu", "tpu"]


@pytest.mark.parametrize("kind", JOBSETS)
def test_schema(kind):
    jsonschema.validate(JOBSETS[kind], SCHEMA)


def test_the_schema_rejects_mistakes():
    pod = ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec")
    for path, value in (
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "failurePolicy", "maxRestarts"), "3"),
        (("apiVersion",), "jobset.x-k8s.io/v1alpha1"),
        ((*pod, "restartPolicy"), "Always"),
        ((*pod, "containers", 0, "env", 0), {"name": "X", "value": 2}),
    ):
        broken = copy.deepcopy(JOBSETS["gpu"])
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_gpu_pods_find_their_coordinator():
    name, count = JOBSETS["gpu"]["metadata"]["name"], job_of(JOBSETS["gpu"])[1]["completions"]
    assert JOBSETS["gpu"]["spec"]["network"].get("subdomain", name) == name
    address = f"{name}-workers-0-0.{name}:8476"
    found = [find_cluster(environment) for environment in environments(JOBSETS["gpu"])]
    assert found == [Cluster("the JobSet", address, count, index) for index in range(count)]
    assert container_of(JOBSETS["gpu"])["ports"] == [{"containerPort": distributed.PORT}]


def test_tpu_pods_leave_discovery_to_jax(monkeypatch):
    monkeypatch.setattr(distributed, "_has_tpu", lambda: True)
    found = [find_cluster(environment) for environment in environments(JOBSETS["tpu"])]
    assert found == [Cluster("the TPU VM")] * len(found)
    selector = job_of(JOBSETS["tpu"])[1]["template"]["spec"]["nodeSelector"]
    chips = math.prod(int(side) for side in selector["cloud.google.com/gke-tpu-topology"].split("x"))
    assert chips == len(found) * container_of(JOBSETS["tpu"])["resources"]["limits"]["google.com/tpu"]


@pytest.mark.parametrize("kind", JOBSETS)
def test_every_variable_is_one_that_is_read(kind):
    read = (ROOT / "spectralmoe_jax/parallel/distributed.py").read_text() + (
        ROOT / "launch/watchdog.sh"
    ).read_text()
    names = {entry["name"] for entry in container_of(JOBSETS[kind])["env"]}
    assert {name for name in names if name not in read} == set()
    # 0 would tell Kubernetes that a pod which was told to leave has finished.
    assert "STOPPED_STATUS" in names


@pytest.mark.parametrize("kind", JOBSETS)
def test_parts_of_a_manifest_agree(kind):
    jobset = JOBSETS[kind]
    _, job = job_of(jobset)
    pod, container = job["template"]["spec"], container_of(jobset)
    assert job["parallelism"] == job["completions"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if len(volume) == 2
              and "persistentVolumeClaim" in volume]  # fmt: skip
    assert claims == [VOLUME["metadata"]["name"]]
    assert VOLUME["spec"]["accessModes"] == ["ReadWriteMany"]
    shared = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shared")
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    assert arguments["workdir"].startswith(f"{shared}/")
    assert (ROOT / arguments["config"]).exists()
    assert (ROOT / container["command"][0]).exists()
    # Nothing of what a pod does while it stops outlasts the time that it is given.
    assert pod["terminationGracePeriodSeconds"] > 100
    assert f"launch/Dockerfile.{'cuda' if kind == 'gpu' else 'tpu'}" in MANIFEST.read_text()


def test_what_a_pod_runs(machine):
    container = container_of(JOBSETS["gpu"])
    environment = next(environments(JOBSETS["gpu"]))
    done = machine.run(*container["command"], *container["args"], **environment)
    assert done.returncode == 0
    assert machine.trainings[0][0] == ["train", *container["args"]]


def test_documented_commands(machine):
    readme = (ROOT / "launch" / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.startswith("kubectl")]
    assert lines
    for line in lines:
        words = line.partition("#")[0].split()
        assert machine.run(*words).returncode == 0
        for word in words:
            assert not word.endswith(".yaml") or (ROOT / word).exists()
    assert [call[:2] for call in machine.calls[:2]] == [["kubectl", "apply"], ["kubectl", "create"]]
