"""What the workers of each backend run in, as a table: which packages, and how Lithops is given them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RuntimeImage:
    """What the workers of a backend run in.

    Attributes
    ----------
    polarmap_extra
        Of polarmap, with the client libraries of the backend.
    extra_packages
        Of a worker beside those that all workers need, backends/requirements.txt.
    lithops_default_name
        The name in Lithops' configuration of this backend of what its default runtime is made of.
    lithops_archive, entrypoint
        Where a worker is an image: the file with Lithops' code, and the command that answers calls.
    clean_all
        Whether, and how, `clean` of Lithops is called after a removal: with or without `all`.
    is_virtual_machine
        Whether a worker is a virtual machine, which installs what its configuration says.
    """

    polarmap_extra: str = ""
    extra_packages: tuple[str, ...] = ()
    lithops_default_name: str = ""
    lithops_archive: str = ""
    entrypoint: str = ""
    clean_all: bool | None = None
    is_virtual_machine: bool = False


AZURE_CLIENTS = ("azure-storage-blob", "azure-storage-queue")

RUNTIME_IMAGES = {
    "localhost": RuntimeImage(),
    "minio": RuntimeImage(extra_packages=("boto3",)),
    "aws_lambda": RuntimeImage("aws", lithops_default_name="DEFAULT_REQUIREMENTS"),
    "gcp_functions": RuntimeImage(
        "gcp", ("google-cloud-storage", "google-cloud-pubsub"), "REQUIREMENTS_FILE"
    ),
    "azure_functions": RuntimeImage("azure", ("azure-functions", *AZURE_CLIENTS), "REQUIREMENTS_FILE"),
    "k8s": RuntimeImage(
        "k8s", ("boto3", "flask", "kubernetes"), lithops_archive="lithops_k8s.zip",
        entrypoint="python lithopsentry.py", clean_all=True,
    ),
    "gcp_cloudrun": RuntimeImage(
        "gcp", ("google-cloud-storage", "flask", "gunicorn"), lithops_archive="lithops_cloudrun.zip",
        # It listens at PORT; how long a call may take is the service's to say.
        entrypoint="gunicorn --timeout 0 lithopsproxy:proxy",
    ),
    "azure_containers": RuntimeImage(
        "azure", AZURE_CLIENTS, lithops_archive="lithops_azure_ca.zip", entrypoint="python lithopsentry.py"
    ),
    "code_engine": RuntimeImage(
        # `all` would delete the project, in which there may be more than Lithops' jobs.
        "ibm", ("ibm-cos-sdk", "flask"), lithops_archive="lithops_codeengine.zip",
        entrypoint="python lithopsentry.py", clean_all=False,
    ),
    "aws_batch": RuntimeImage(
        "aws", ("boto3",), lithops_archive="lithops_aws_batch.zip",
        entrypoint="python entry_point.py", clean_all=True,
    ),
    "aws_ec2": RuntimeImage("aws", clean_all=True, is_virtual_machine=True),
    "gcp_compute_engine": RuntimeImage("gcp", clean_all=True, is_virtual_machine=True),
    "azure_vms": RuntimeImage("azure", clean_all=True, is_virtual_machine=True),
}  # fmt: skip
