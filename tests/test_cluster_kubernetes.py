"""``cluster-kubernetes.yaml`` has the form that KubeRay expects.

The schema below holds the names and types of the API reference of KubeRay's ``ray.io/v1`` (Apache-2.0,
https://ray-project.github.io/kuberay/reference/api/) and, of pods, those fields of ``core/v1`` that the file uses.
"""

import copy
import shlex

import jsonschema
import pytest
import yaml

from eqscale.cli import build_parser
from tests.jobs import ROOT

_TEXT, _COUNT, _FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_ANY = {"type": "object"}


def _fields(required, **fields):
    return {"type": "object", "additionalProperties": False, "required": required, "properties": fields}


def _list(of):
    return {"type": "array", "items": of, "minItems": 1}


_QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
_POD = _fields(
    ["spec"],
    metadata=_ANY,
    spec=_fields(
        ["containers"],
        containers=_list(
            _fields(
                ["name", "image"],
                name=_TEXT,
                image=_TEXT,
                resources=_fields([], limits=_QUANTITIES, requests=_QUANTITIES),
                volumeMounts=_list(_fields(["name", "mountPath"], name=_TEXT, mountPath=_TEXT, readOnly=_FLAG)),
            )
        ),
        volumes=_list(_fields(["name"], name=_TEXT, persistentVolumeClaim=_fields(["claimName"], claimName=_TEXT))),
    ),
)
_CLUSTER = _fields(
    ["headGroupSpec"],
    suspend=_FLAG,
    managedBy=_TEXT,
    authOptions=_fields([], mode={"enum": ["disabled", "token"]}, secretName=_TEXT, enableK8sTokenAuth=_FLAG),
    autoscalerOptions=_fields(
        [],
        resources=_ANY,
        image=_TEXT,
        imagePullPolicy=_TEXT,
        securityContext=_ANY,
        idleTimeoutSeconds=_COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version={"enum": ["v1", "v2"]},
        env={"type": "array"},
        envFrom={"type": "array"},
        volumeMounts={"type": "array"},
    ),
    headServiceAnnotations=_TEXTS,
    enableInTreeAutoscaling=_FLAG,
    gcsFaultToleranceOptions=_ANY,
    headGroupSpec=_fields(
        ["template"], template=_POD, headService=_ANY, enableIngress=_FLAG, rayStartParams=_TEXTS, serviceType=_TEXT
    ),
    rayVersion=_TEXT,
    workerGroupSpecs=_list(
        _fields(
            ["groupName", "maxReplicas", "minReplicas", "template"],
            suspend=_FLAG,
            groupName=_TEXT,
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            idleTimeoutSeconds=_COUNT,
            rayStartParams=_TEXTS,
            template=_POD,
            scaleStrategy=_ANY,
            numOfHosts=_COUNT,
        )
    ),
)
SCHEMA = _fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_fields(["name"], name=_TEXT, namespace=_TEXT, labels=_TEXTS, annotations=_TEXTS),
    spec=_fields(
        [],
        activeDeadlineSeconds=_COUNT,
        backoffLimit=_COUNT,
        rayClusterSpec=_CLUSTER,
        submitterPodTemplate=_POD,
        metadata=_TEXTS,
        clusterSelector=_TEXTS,
        submitterConfig=_fields([], backoffLimit=_COUNT),
        managedBy=_TEXT,
        deletionStrategy=_ANY,
        entrypoint=_TEXT,
        runtimeEnvYAML=_TEXT,
        jobId=_TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        entrypointResources=_TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        ttlSecondsAfterFinished=_COUNT,
        shutdownAfterJobFinishes=_FLAG,
        suspend=_FLAG,
    ),
)
TEXT = (ROOT / "cluster-kubernetes.yaml").read_text()
VOLUME, JOB = yaml.safe_load_all(TEXT)
CLUSTER = JOB["spec"]["rayClusterSpec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]


def test_the_job_has_kuberays_form():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(JOB, SCHEMA)


@pytest.mark.parametrize("path", [("spec",), ("spec", "rayClusterSpec"), ("spec", "rayClusterSpec", "headGroupSpec")])
def test_a_misspelt_field_would_be_noticed(path):
    job = copy.deepcopy(JOB)
    place = job
    for name in path:
        place = place[name]
    place["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.validate(job, SCHEMA)


def test_every_pod_mounts_the_volume_that_the_file_claims():
    assert VOLUME["kind"] == "PersistentVolumeClaim"
    assert VOLUME["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in GROUPS:
        pod = group["template"]["spec"]
        (volume,), (container,) = pod["volumes"], pod["containers"]
        assert volume["persistentVolumeClaim"]["claimName"] == VOLUME["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/shared"}]


def test_ray_is_the_pinned_version_and_asks_for_a_token():
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert CLUSTER["rayVersion"] == pinned.removeprefix("ray==")
    assert f"rayproject/ray:{CLUSTER['rayVersion']}-py311-gpu" in TEXT
    assert CLUSTER["authOptions"]["mode"] == "token"
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_study_is_one_that_this_version_understands():
    shell, option, script = shlex.split(JOB["spec"]["entrypoint"])
    assert (shell, option) == ("bash", "-c")
    change, command = script.split(" && ")
    assert change == "cd /shared"
    words = shlex.split(command)
    assert words[0] == "eqscale"
    args = build_parser().parse_args(words[1:])
    assert (args.job, args.words[:4]) == ("grid", ["--preset", "paper", "--address", "auto"])
