"""The runtime images of each backend's workers: which packages they contain and how Lithops builds them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RuntimeImage:
    """The instructions for building and removing the runtime image of a backend's workers.

    A runtime image contains the packages that a worker needs to run tasks.

    Attributes
    ----------
    polarmap_extra
        The polarmap extra that installs the backend's client libraries, as in "polarmap[aws]".
    extra_packages
        Packages that the workers need in addition to those in backends/requirements.txt.
    lithops_default_name
        The Lithops setting that lists the packages of the default runtime; empty if the backend has none.
    lithops_archive, entrypoint
        For container images: the name of the archive that contains Lithops, and the command that starts a
        worker. Empty for other images.
    clean_all
        The argument `all` of the Lithops method `clean`, which deletes the backend's resources after the
        image is removed. If None, `clean` is not called.
    is_virtual_machine
        Whether workers are virtual machines, which install the packages listed in the configuration.
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
        # The option `--timeout 0` turns off the time limit of gunicorn, so that only the time limit of Cloud
        # Run applies. The port needs no option, because gunicorn listens on $PORT.
        entrypoint="gunicorn --timeout 0 lithopsproxy:proxy",
    ),
    "azure_containers": RuntimeImage(
        "azure", AZURE_CLIENTS, lithops_archive="lithops_azure_ca.zip", entrypoint="python lithopsentry.py"
    ),
    "code_engine": RuntimeImage(
        # With `all=True`, Lithops would delete the whole Code Engine project, which may contain other jobs.
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
