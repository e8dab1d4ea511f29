"""What the workers of each backend run in, as a table: which packages, and how Lithops is given them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Runtime:
    """What the workers of a backend run in.

    Attributes
    ----------
    extra
        Of polarmap, with the client libraries of the backend.
    packages
        Of a worker beside those that all workers need, backends/requirements.txt.
    default
        The name in Lithops' configuration of this backend of what its default runtime is made of.
    archive, start
        Where a worker is an image: the file with Lithops' code, and the command that answers calls.
    cleans
        Whether, and how, `clean` of Lithops is called after a removal: with or without `all`.
    is_machine
        Whether a worker is a virtual machine, which installs what its configuration says.
    """

    extra: str = ""
    packages: tuple[str, ...] = ()
    default: str = ""
    archive: str = ""
    start: str = ""
    cleans: bool | None = None
    is_machine: bool = False


AZURE_CLIENTS = ("azure-storage-blob", "azure-storage-queue")

RUNTIMES = {
    "localhost": Runtime(),
    "minio": Runtime(packages=("boto3",)),
    "aws_lambda": Runtime("aws", default="DEFAULT_REQUIREMENTS"),
    "gcp_functions": Runtime("gcp", ("google-cloud-storage", "google-cloud-pubsub"), "REQUIREMENTS_FILE"),
    "azure_functions": Runtime("azure", ("azure-functions", *AZURE_CLIENTS), "REQUIREMENTS_FILE"),
    "k8s": Runtime(
        "k8s", ("boto3", "flask", "kubernetes"), archive="lithops_k8s.zip", start="python lithopsentry.py",
        cleans=True,
    ),
    "gcp_cloudrun": Runtime(
        "gcp", ("google-cloud-storage", "flask", "gunicorn"), archive="lithops_cloudrun.zip",
        # It listens at PORT; how long a call may take is the service's to say.
        start="gunicorn --timeout 0 lithopsproxy:proxy",
    ),
    "azure_containers": Runtime(
        "azure", AZURE_CLIENTS, archive="lithops_azure_ca.zip", start="python lithopsentry.py"
    ),
    "code_engine": Runtime(
        # `all` would delete the project, in which there may be more than Lithops' jobs.
        "ibm", ("ibm-cos-sdk", "flask"), archive="lithops_codeengine.zip", start="python lithopsentry.py",
        cleans=False,
    ),
    "aws_batch": Runtime(
        "aws", ("boto3",), archive="lithops_aws_batch.zip", start="python entry_point.py", cleans=True
    ),
    "aws_ec2": Runtime("aws", cleans=True, is_machine=True),
    "gcp_compute_engine": Runtime("gcp", cleans=True, is_machine=True),
    "azure_vms": Runtime("azure", cleans=True, is_machine=True),
}  # fmt: skip
