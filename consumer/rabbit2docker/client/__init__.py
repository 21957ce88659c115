"""rabbit2docker.client: request builds and follow them from a hub's own code.

import asyncio, os
from rabbit2docker.client import BuildEvents, BuildRequest


async def main() -> None:
    async with BuildEvents(os.environ["RABBIT2DOCKER_AMQP__URL"], tenant="default") as events:
        request_id = await events.submit(
            BuildRequest(provider="gh", spec="binder-examples/requirements/HEAD")
        )
        async for event in events.of_request(request_id):
            print(event.kind, event.data.model_dump_json(exclude_none=True))


asyncio.run(main())
"""

from rabbit2docker.client.build_events import BuildEvents
from rabbit2docker.client.history import History
from rabbit2docker.client.pull_secrets import PullSecrets
from rabbit2docker_schemas.personal_secrets import personal_request_id, personal_secret
from rabbit2docker_schemas.requests import BuildRequest

__all__ = ["BuildEvents", "BuildRequest", "History", "PullSecrets", "personal_request_id", "personal_secret"]
