"""`ssr deploy`: bring a Prefect server to what `deployments/` says, and report what was changed.

In order: work pools and their queues, the block with the store's credentials, the automations for dead workers, the
deployments of `prefect.yaml`. It can be run again at any time: what is as wanted is not written, and scheduled runs
stay scheduled. What people have set on the server stays, too: defaults of a pool, what a schedule runs and when, and
what is paused. Only what the command line names replaces it. Where such a setting differs from ours, it is reported.

Not covered: starting workers, building images, and removing what is no longer in `deployments/`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL

from flows.deployment import pools
from flows.deployment.deployments import as_on_server, put_deployment
from flows.deployment.target import Change, Target, fill_in, store_for_workers
from tasks.artifacts.store import open_store
from tasks.errors import ConfigError, SsrError


def deploy(target: Target, *, check_store: bool = True) -> list[Change]:
    """Create or update everything, in the order in which one thing needs another.

    Raises:
        ConfigError: A setting is wrong, there is no server, or a pool has another type or is too small.
        StoreError: This machine cannot write to the store.
        SsrError: The server refused something.
    """
    given = target.given()
    with _server() as client:
        target = as_on_server(client, target)
        content = fill_in(target)
        if check_store:
            open_store(store_for_workers(target)).preflight()
        found = pools.check_pools(client, target)
        merged = pools.templates(target, found)
        changes: list[Change] = []
        for pool, template in merged.items():
            changes += pools.put_pool(client, pool, found[pool], template, target)
        for pool, queues in pools.QUEUES.items():
            changes += [pools.put_queue(client, pool, queue, found[pool]) for queue in queues]
        if target.store_access:
            changes.append(pools.put_access(target.store_access))
        seconds = pools.start_seconds(target.infra, [one.template for one in merged.values()])
        changes.append(pools.put_automation(client, pools.dead_worker_automation(target.dead_after_seconds)))
        changes.append(pools.put_automation(client, pools.never_began_automation(seconds)))
        for entry in content["deployments"]:
            changes += put_deployment(client, entry, content["pull"], given)
        return changes


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError(
            "no Prefect server: PREFECT_API_URL is not set. Start one: prefect server start; then: "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        try:
            client.raise_for_api_version_mismatch()
        except (RuntimeError, httpx.HTTPError) as error:
            why = error.__cause__ or error
            raise ConfigError(
                f"PREFECT_API_URL={url}: {why}. Is a server of Prefect {client.client_version()} up there, and is "
                "PREFECT_API_AUTH_STRING set if it asks for one?"
            ) from error
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise SsrError(f"{url} refused: {error}: {error.response.text[:2000]}") from error
        except httpx.HTTPError as error:
            raise SsrError(f"{url}: {type(error).__name__}: {error}. Run the same command again.") from error
