#!/usr/bin/env bash
# Makes the bucket of SSR_STORE unless it is there: safe to run again.
#
# Endpoint and keys come from the AWS_* environment. SSR_WAIT_SECONDS: how long to wait for the server (120).
set -euo pipefail

store=${SSR_STORE:?set it, for example s3://ssr/store}
if [[ $store != s3://?* ]]; then
  echo "make-bucket: SSR_STORE=$store is no s3://bucket/prefix: there is no bucket to make" >&2
  exit 2
fi
bucket=${store#s3://}

exec python - "${bucket%%/*}" "${SSR_WAIT_SECONDS:-120}" <<'PYTHON'
import sys, time
import botocore.exceptions, s3fs

bucket, seconds = sys.argv[1], float(sys.argv[2])
not_up = (botocore.exceptions.EndpointConnectionError, botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError)
deadline = time.monotonic() + seconds
while True:
    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    try:
        if fs.exists(bucket):
            print(f"make-bucket: {bucket} is there")
        else:
            fs.mkdir(bucket)
            print(f"make-bucket: made {bucket}")
        break
    except PermissionError as error:
        sys.exit(f"make-bucket: {bucket}: {error}. Are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY those of the server?")
    except (OSError, *not_up) as error:  # OSError: the server answers, its storage does not yet
        if time.monotonic() > deadline:
            sys.exit(f"make-bucket: {bucket}: {error}. Is the server at AWS_ENDPOINT_URL up?")
        time.sleep(1)
PYTHON
