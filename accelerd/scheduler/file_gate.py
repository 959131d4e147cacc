"""Models whose files are not on this machine yet: what follows from the news of their download.

Requests for such a model wait without a limit and take no memory from others, see Admission; whoever downloads hears
FilesWanted and tells here how it goes. Driven by Core, pure like it.
"""

from __future__ import annotations

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause, Exit
from accelerd.memory.model import Forecast
from accelerd.scheduler.admission import Admission
from accelerd.scheduler.lifecycle import Event, State
from accelerd.scheduler.record import DownloadProgress, ModelRecord


class FileGate:
    """The scheduler's reactions to downloads. What comes for a model that is not DOWNLOADING (any more) is ignored."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def progress(self, name: str, progress: DownloadProgress) -> None:
        """So much has come."""
        if (record := self._downloading(name)) is not None:
            record.download = progress

    def arrived(self, name: str, forecast: Forecast) -> None:
        """Its files are here, and this is what it needs: from now on it is a model like any other."""
        record = self._downloading(name)
        if record is None:
            return
        admission = self._admission
        record.device = admission.needs.device(record.spec)
        record.expect(forecast)
        record.failures.clear()
        now = admission.clock.monotonic()
        for waiter in record.waiting:
            if waiter.deadline is not None:  # the time of the download does not count
                waiter.deadline = now + admission.settings.queue_timeout
        admission.move(record, Event.DOWNLOADED, f"downloaded in {now - record.since:.0f} s")
        admission.schedule()

    def failed(self, name: str, error: AccelError, *, again: bool) -> None:
        """They do not come: who waits gets this error. A later request tries again, after a pause.

        `again`: so does a model that is to be kept loaded, after pauses that grow.
        """
        record = self._downloading(name)
        if record is None:
            return
        admission, settings = self._admission, self._admission.settings
        now = admission.clock.monotonic()
        record.error = Exit(Cause.NO_MODEL, error.message)
        if again:
            record.failures.append(now)
            delay = min(settings.backoff_max, settings.backoff_initial * 2 ** (len(record.failures) - 1))
            record.retry_at = now + delay
            admission.move(record, Event.BACK_OFF, error.message)
        else:
            record.retry_at = now + settings.backoff_initial
            record.download_error = error
            admission.move(record, Event.GIVE_UP, error.message)
        admission.reject_all(record, error)
        admission.schedule()

    def _downloading(self, name: str) -> ModelRecord | None:
        record = self._admission.records.get(name)
        return record if record is not None and record.state is State.DOWNLOADING else None
