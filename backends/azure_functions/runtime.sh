#!/bin/sh
# Build the worker runtime with the client's versions and deploy it: `sh runtime.sh [python [config]]`.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
python=${1:-python3}
config=${2:-$here/../../config/azure_functions.yaml}

exec "$python" -m polarmap.cli.deploy azure_functions "$config" "$here"
