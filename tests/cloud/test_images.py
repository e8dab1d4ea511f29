"""Run container images as processes, with the commands by which each cloud starts them.

Lithops' own backends deploy, run maps with a killed worker, and undeploy. Instead of Docker, a virtual
environment has the packages of the image. Instead of the cloud, a few functions start processes of the image.
Storage is SeaweedFS.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from emulators import INSTANCES, Image, deployed_mapped_and_removed, listens
from servers import S3Server, free_ports

# --- fakes of the clouds ----------------------------------------------------------------------


def cloud_run(image: Image, patch: pytest.MonkeyPatch) -> None:
    """Fake Cloud Run: a service has several instances, each of which serves one call at a time."""
    service = import_module("lithops.serverless.backends.gcp_cloudrun").ServerlessBackend
    urls: list[Iterator[str]] = []

    def create(*_: Any) -> None:
        ports = free_ports(INSTANCES)
        for port in ports:
            image.start(lambda port=port: listens(port), PORT=str(port))  # type: ignore[misc]
        urls.append(itertools.cycle([f"http://127.0.0.1:{port}" for port in ports]))

    def identify(self: Any) -> None:
        self.project_name, self.service_account = "project", "account"
        self.cr_config |= {"project_name": self.project_name}

    patch.setattr(service, "_build_api_resource", identify)
    patch.setattr(service, "_resolve_artifact_registry_repository_fallback", lambda self: None)
    patch.setattr(service, "_ensure_artifact_registry_upload_permission", lambda self, name: None)
    patch.setattr(service, "_create_service", create)
    patch.setattr(service, "_get_url_and_token", lambda self, name: (next(urls[0]), "token"))
    patch.setattr(service, "_delete_service", lambda self, name: image.removed.append("service"))


def batch(image: Image, patch: pytest.MonkeyPatch) -> None:
    """Fake AWS Batch: a job is one process per index of its array."""
    module = import_module("lithops.serverless.backends.aws_batch.aws_batch")
    created: dict[str, list[dict[str, Any]]] = {
        "computeEnvironments": [],
        "jobQueues": [],
        "jobDefinitions": [],
    }
    fine = {"ResponseMetadata": {"HTTPStatusCode": 200}}

    def note(kind: str, key: str) -> Callable[..., Any]:
        def create(**asked: Any) -> Any:
            created[kind].append({key: asked[key], "status": "VALID", "state": "ENABLED"})
            if kind == "jobDefinitions":
                created[kind][-1] |= {"status": "ACTIVE", "jobDefinitionArn": asked[key]}
            return fine

        return create

    def submit(*, containerOverrides: Any, arrayProperties: Any = None, **_: Any) -> None:
        env = {one["name"]: one["value"] for one in containerOverrides["environment"]}
        if arrayProperties is None:
            assert image.start(**env).wait(60) == 0 or env["__LITHOPS_ACTION"] == "run_job"
            return
        for index in range(arrayProperties["size"]):
            image.start(**env, AWS_BATCH_JOB_ARRAY_INDEX=str(index))

    def deregister(jobDefinition: str) -> Any:
        image.removed.append("job definition")
        created["jobDefinitions"].clear()
        created["jobQueues"].clear()
        created["computeEnvironments"].clear()
        return fine

    client = SimpleNamespace(
        describe_compute_environments=lambda: fine | created,
        describe_job_queues=lambda: fine | created,
        describe_job_definitions=lambda status: fine | created,
        create_compute_environment=note("computeEnvironments", "computeEnvironmentName"),
        create_job_queue=note("jobQueues", "jobQueueName"),
        register_job_definition=note("jobDefinitions", "jobDefinitionName"),
        deregister_job_definition=deregister,
        submit_job=submit,
        get_authorization_token=lambda: (
            fine | {"authorizationData": [{"authorizationToken": "QVdTOnRva2Vu"}]}
        ),
        create_repository=lambda **_: None,
    )
    session = SimpleNamespace(client=lambda name, **_: client)
    patch.setattr(module, "boto3", SimpleNamespace(Session=lambda **_: session))


def code_engine(image: Image, patch: pytest.MonkeyPatch) -> None:
    """Fake Code Engine: a job run is one process per index of its array; deleting the run kills them."""
    backend = import_module("lithops.serverless.backends.code_engine").ServerlessBackend
    utils = import_module("lithops.utils")
    payloads: dict[str, str] = {}
    runs: dict[str, list[subprocess.Popen[bytes]]] = {}

    def store(self: Any, name: str, payload: Any) -> str:
        payloads[name] = utils.dict_to_b64str(payload)
        return name

    def run(self: Any, jobrun_name: str, total_workers: int, action: str, **options: Any) -> None:
        env = {"ACTION": action, "PAYLOAD": payloads[options["payload_config_map_name"]]}
        runs[jobrun_name] = [image.start(**env, JOB_INDEX=str(index)) for index in range(total_workers)]

    def delete(self: Any, name: str) -> None:
        for process in runs.pop(name, []):
            process.kill()

    def namespace(self: Any, **_: Any) -> str:
        self.namespace = self.project_id = "project"
        return "project"

    patch.setattr(backend, "_get_or_create_namespace", namespace)
    patch.setattr(backend, "_create_job_definition", lambda self, *_: None)
    patch.setattr(backend, "_job_def_exists", lambda self, name: True)
    patch.setattr(backend, "_create_config_map", store)
    patch.setattr(backend, "_delete_config_map", lambda self, name: payloads.pop(name, None))
    patch.setattr(backend, "_delete_lithops_config_maps", lambda self: None)
    patch.setattr(backend, "_run_job", run)
    patch.setattr(backend, "_wait_for_job_run", lambda self, name: [one.wait(60) for one in runs[name]])
    patch.setattr(backend, "_delete_job_run", delete)
    patch.setattr(backend, "_list_jobs", lambda self: [])
    patch.setattr(backend, "_delete_job_definition", lambda self, name: image.removed.append("job"))


CLOUDS = {"gcp_cloudrun": cloud_run, "aws_batch": batch, "code_engine": code_engine}


@pytest.mark.parametrize("name", CLOUDS)
def test_an_image_is_deployed_runs_maps_and_is_removed(
    name: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    deployed_mapped_and_removed(name, CLOUDS[name], s3_server, tmp_path, monkeypatch)
