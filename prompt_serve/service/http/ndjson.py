"""Answer in NDJSON: one JSON document per line, sent as soon as it is known."""

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse

from prompt_serve.schemas import LastLine
from prompt_serve.service.inference.predictions import json_line
from prompt_serve.service.problems import logged_problem

NDJSON = "application/x-ndjson"


def ndjson_answer(lines: AsyncIterator[bytes]) -> StreamingResponse:
    """Return a response of lines. An error ends it with a problem document as its last line.

    If the client disconnects, the iterator is cancelled where it waits.
    """
    return StreamingResponse(_with_problem(lines), media_type=NDJSON)


async def _with_problem(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for some in lines:
            yield some
    # The status was sent long ago: whatever happens, the client must learn it from the body.
    except Exception as error:
        yield json_line(LastLine(complete=False, problem=logged_problem(error)))
