#!/usr/bin/env bash
# Builds the images, starts the whole stack, deploys, runs a recipe through the API, checks what it left, and takes all down.
#
# Its project, volumes and passwords are its own: a stack that is already running, and docker/.env, are not touched.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: docker/smoke.sh [--profile cpu-only|cpu-engine|gpu] [--port N] [--keep] [--dry-run]

Builds the images, starts Prefect on PostgreSQL, S3, a CPU worker and a worker for the GPU pool, deploys twice, runs a recipe
through the API, checks the report's artifact and the store on S3, and removes everything again. Needs Docker 25 with Compose
2.24 or newer; takes about 15 minutes the first time.

  --profile NAME  what serves the GPU pool (default cpu-only):
                    cpu-only    no GPU, no vLLM: the recipe demo
                    cpu-engine  vLLM's CPU build (needs AVX-512): the recipe demo-vllm
                    gpu         an NVIDIA GPU with the container toolkit: the recipe demo-vllm
  --port N        where the Prefect UI and API are published on 127.0.0.1 (default 4200)
  --keep          leave the stack running, and say where the UI is and how to remove it
  --dry-run       print the commands and run none
  --help          this text
TEXT
}

fail() {
  echo "smoke: $1" >&2
  exit "${2:-1}"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
project=ssr-smoke
profile=cpu-only
port=4200
keep=false
dry_run=false

while (($#)); do
  case $1 in
    --profile | --port)
      (($# > 1)) || fail "$1 wants a value: see docker/smoke.sh --help" 2
      if [[ $1 == --profile ]]; then profile=$2; else port=$2; fi
      shift
      ;;
    --keep) keep=true ;;
    --dry-run) dry_run=true ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) fail "unknown argument '$1': see docker/smoke.sh --help" 2 ;;
  esac
  shift
done

case $profile in
  cpu-only) recipe=demo ;;
  cpu-engine | gpu) recipe=demo-vllm ;;
  *) fail "--profile '$profile': there are cpu-only, cpu-engine and gpu" 2 ;;
esac
if ! [[ $port =~ ^[1-9][0-9]{0,4}$ ]]; then fail "--port '$port': not a port number" 2; fi

store=s3://ssr/smoke
# One arm and a look at the evaluation: what is tried here is the stack. Each step runs on the pool it is deployed to.
changes='"execution": "deployments", "train": {"policies": ["ssr"], "learning_rates": [0.001], "epochs": 1}, "evaluate": {"limit": 20, "max_task_rows": 20}'
parameters="{\"run\": {\"recipe\": \"$recipe\", $changes}, \"store\": \"$store\"}"
env_file=$root/docker/.env.smoke
started=false

# Every command that changes or asks something goes through here: --dry-run prints it instead.
run() {
  if [[ $dry_run == true ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

compose() {
  run docker compose --project-name "$project" --file "$root/docker/compose.yaml" --env-file "$env_file" --profile "$profile" "$@"
}

say() { echo "# $*"; }

check_docker() {
  command -v docker >/dev/null || fail "there is no docker command here. Install Docker Engine 25 or newer with the Compose plugin."
  local version
  version=$(docker compose version --short 2>/dev/null) ||
    fail "docker has no compose plugin: install docker-compose-plugin (Compose 2.24 or newer)."
  version=${version#v}
  [[ $(printf '%s\n' 2.24 "$version" | sort -V | head -n 1) == 2.24 ]] ||
    fail "Compose $version is too old: 2.24 or newer is needed."
  docker info >/dev/null 2>&1 ||
    fail "the Docker engine does not answer. Start it (systemctl start docker), or add yourself to the group docker."
}

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

write_env() {
  local commit
  commit=$(git -C "$root" describe --always --dirty --abbrev=12 '--exclude=*' 2>/dev/null || echo local)
  (
    umask 077
    # S3_PORT=0: any free port; nothing here needs to know it.
    printf '%s\n' "POSTGRES_PASSWORD=$(random)" "S3_ACCESS_KEY=$(random)" "S3_SECRET_KEY=$(random)" "S3_PORT=0" \
      "SSR_STORE=$store" "PREFECT_PORT=$port" "SSR_COMMIT=$commit" >"$env_file"
  )
}

finish() {
  local code=$?
  trap - EXIT
  if ((code)) && [[ $started == true ]]; then
    echo "smoke: failed; the state of the services and their last lines:" >&2
    compose ps --all >&2 || true
    compose logs --tail 60 >&2 || true
  fi
  if [[ $started == true && $keep == true ]]; then
    say "kept: the UI is at http://127.0.0.1:$port, passwords in $env_file"
    say "remove it: docker compose --project-name $project --file $root/docker/compose.yaml --env-file $env_file --profile $profile down --volumes"
  elif [[ $started == true ]]; then
    say "remove the containers, the network and the volumes"
    compose down --volumes --remove-orphans --timeout 30 || code=1
    [[ $dry_run == true ]] || rm -f "$env_file"
  fi
  exit "$code"
}

in_worker() { compose exec -T cpu-worker "$@"; }

# A record of a run must be there; an adapter is promoted only where the recipe asks for it and the tests allow it.
list_store='import sys; from tasks.artifacts.store import open_store; store = open_store(sys.argv[1]); runs = store.names("runs"); '
list_store+='print("runs:", runs, "promoted:", store.names("current")); sys.exit(0 if runs else "no record of a run")'

if [[ $dry_run == false ]]; then
  check_docker
  [[ ! -e $env_file ]] || fail "$env_file is there: a stack of an earlier run with --keep. Remove it with
  docker compose --project-name $project --file $root/docker/compose.yaml --env-file $env_file --profile $profile down --volumes && rm $env_file"
  write_env
fi
started=true
trap finish EXIT

say "build the images"
compose build
say "start everything; the one-shot services migrate the database, make the bucket and deploy"
compose up --detach --wait --wait-timeout 900
say "deploy again: it must be safe to repeat"
compose run --rm deploy
say "run the recipe $recipe through the API, and wait for it"
in_worker prefect --no-prompt deployment run rehearsal-pipeline/nightly --params "$parameters" --watch --watch-timeout 3600
say "its report is an artifact in the UI"
in_worker prefect artifact inspect "report-$recipe" --limit 1
say "its record is on S3"
in_worker python -c "$list_store" "$store"
say "passed: the UI is at http://127.0.0.1:$port"
