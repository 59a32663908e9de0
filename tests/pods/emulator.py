"""A bucket on this host: python -m tests.pods.emulator DIRECTORY PORT.

This is gcp-storage-emulator with the generations of objects, which it lacks: GCS sends one with
each object, and refuses a write with the condition of another one.
"""

import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

BUCKET = "bucket"


def environment(port: int) -> dict[str, str]:
    """Returns the variables with which processes use this bucket for gs://bucket."""
    address = f"http://localhost:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        # gcsfs does not ask for the kind of the bucket, which needs credentials.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


def _with_generations(handler: Callable[..., None]) -> Callable[..., None]:
    from gcp_storage_emulator.exceptions import NotFound

    def handle(request: Any, response: Any, storage: Any) -> None:
        name = request.params.get("object_id") or request.query.get("name", [None])[0]
        try:
            generation = storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except (KeyError, NotFound):
            generation = "0"
        if request.query.get("ifGenerationMatch", [generation]) != [generation]:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        response["x-goog-generation"] = generation
        handler(request, response, storage)

    return handle


def main(directory: str, port: str) -> None:
    from gcp_storage_emulator import server  # installed by `make pods`

    server.HANDLERS = tuple(
        (path, {method: _with_generations(handler) for method, handler in handlers.items()})
        for path, handlers in server.HANDLERS
    )
    # For clients that open many connections at once.
    server.server.HTTPServer.request_queue_size = 128
    server.create_server("localhost", int(port), False, BUCKET, directory).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
