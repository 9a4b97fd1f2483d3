#!/usr/bin/env bash
# Waits for the Prefect API where the command needs it (a worker, a deploy), then becomes the command.
#
# compose waits by itself; this is for the restart of a whole machine, for Kubernetes, and for `docker run`.
# SSR_WAIT_SECONDS: how long at most (120). 0 does not wait.
set -euo pipefail

api_answers() {
  python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$PREFECT_API_URL/health" 2>/dev/null
}

wait_for_api() {
  if [[ -z ${PREFECT_API_URL:-} ]]; then
    # Without it Prefect starts a server of its own in the container: a worker that waits for runs nobody can see.
    echo "entrypoint: '$1' needs a Prefect server: set PREFECT_API_URL, for example http://prefect-server:4200/api" >&2
    exit 2
  fi
  local seconds=${SSR_WAIT_SECONDS:-120}
  local deadline=$((SECONDS + seconds))
  until ((seconds == 0)) || api_answers; do
    if ((SECONDS >= deadline)); then
      echo "entrypoint: $PREFECT_API_URL/health did not answer within $seconds s. Is the server up, and is the address right" \
        "from inside the container? SSR_WAIT_SECONDS waits longer." >&2
      exit 1
    fi
    sleep 1
  done
}

case "${1:-} ${2:-}" in
  "prefect worker" | "ssr deploy") wait_for_api "$1 $2" ;;
esac
exec "$@"
