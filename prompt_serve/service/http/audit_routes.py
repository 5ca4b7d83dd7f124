"""``GET /v1/audit``: the audit log, for keys with the role ``admin``."""

from typing import Annotated

from fastapi import APIRouter, Query

from prompt_serve.schemas import AuditPage
from prompt_serve.service.http.dependencies import CoreOfApp, problems
from prompt_serve.service.storage.audit import AuditLog

_NO_NUL = r"^[^\x00]*$"  # which PostgreSQL rejects

router = APIRouter(tags=["service"])


@router.get("/audit", responses=problems(422, 503))
async def audit(
    core: CoreOfApp,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[
        int | None, Query(ge=1, lt=2**63, description="`next` of the previous page.")
    ] = None,
    action: Annotated[
        str | None,
        Query(pattern=_NO_NUL, description="Kind of change, for example task.put or key.revoke."),
    ] = None,
    subject: Annotated[
        str | None, Query(pattern=_NO_NUL, description="Name of a task or key.")
    ] = None,
) -> AuditPage:
    """List changes, newest first; `next` is the `before` of the next, older page."""

    def read() -> AuditPage:
        log = AuditLog(core.database)
        return log.page(limit=limit, before=before, action=action, subject=subject)

    return await core.threads.read(read)
