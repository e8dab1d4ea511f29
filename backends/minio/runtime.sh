#!/bin/sh
# Check that an interpreter can be a worker with S3 storage: `sh runtime.sh [python]`. Nothing is built.
set -eu

python=${1:-python3}
here=$(dirname "$0")
wanted=$(sed -n 's/^lithops>=\(.*\),<.*/\1/p' "$here/requirements.txt")

found=$("$python" -c 'import boto3, cloudpickle, lithops, numpy; print(lithops.__version__)') || {
    echo "runtime: $python lacks a package; run: $python -m pip install -r $here/requirements.txt" >&2
    exit 1
}
case $found in
"$wanted".*) ;;
*)
    echo "runtime: $python has lithops $found, polarmap needs $wanted." >&2
    exit 1
    ;;
esac
echo "runtime: $python can run polarmap's workers on this machine with S3 storage (lithops $found)."
