"""Every error this project raises on purpose.

Owns the exception tree and nothing else. Invariant: an error that reaches a user is one of these, and
its message names the field, the limit and the cure. Callable from any thread.

    ThorPolicyError
    ├── ConfigError           a setting, file or option is wrong                      exit 2
    │   └── AlreadyRunning    another daemon holds the state directory or endpoint    exit 2
    ├── CatalogError          a model is unknown, missing or cannot be fetched        exit 2
    │   └── DigestMismatch    a model file is not the file that was recorded          exit 2
    ├── PackError             a policy pack cannot be used                            exit 2
    ├── SuiteError            a scenario file cannot be used                          exit 2
    ├── EngineError           the model cannot be loaded or a decode failed           exit 2
    │   └── DeadlineExceeded  the deadline passed between two decodes
    ├── CalibrationError      there is too little to calibrate confidence with          exit 2
    ├── ExportError           there are too few corrections, or the place is taken   exit 2
    ├── TrainingError         an adapter cannot be trained, or is not what torch made exit 2
    ├── JournalError          the journal cannot be opened, written or trusted        exit 2
    │   └── DiskFull          the disk is full, and `on_full` is halt                 exit 5
    ├── Stalled               a thread of the daemon never came back                  exit 6
    ├── Unreachable           no daemon answered in time                              exit 3
    └── RequestError          a request is refused; `code` is the wire code           exit 4

The wire codes of a RequestError are listed in `ErrorCode`.
"""

from __future__ import annotations

from typing import Literal, get_args

ErrorCode = Literal[
    "bad_request",
    "version_mismatch",
    "unauthorized",
    "not_found",
    "conflict",
    "too_large",
    "busy",
    "expired",
    "unavailable",
    "disk_full",
    "shutting_down",
    "internal",
]

#: Every code that an error reply can carry (docs/reference/protocol.md lists their meaning).
ERROR_CODES: tuple[str, ...] = get_args(ErrorCode)


class ThorPolicyError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 2


class ConfigError(ThorPolicyError):
    """A setting, a file or an option is wrong."""


class AlreadyRunning(ConfigError):
    """Another daemon holds the state directory or the endpoint."""


class CatalogError(ThorPolicyError):
    """A model is unknown, missing, or cannot be fetched."""


class DigestMismatch(CatalogError):
    """A model file is not the file whose sha256 was pinned or recorded."""


class PackError(ThorPolicyError):
    """A policy pack cannot be used; the message names file and field."""


class SuiteError(ThorPolicyError):
    """A scenario file cannot be used; the message names file and scenario."""


class EngineError(ThorPolicyError):
    """The model cannot be loaded, or a decode failed."""


class DeadlineExceeded(EngineError):
    """The request's deadline passed between two decodes."""


class CalibrationError(ThorPolicyError):
    """There is too little to calibrate confidence with."""


class ExportError(ThorPolicyError):
    """There are too few corrections to export, or the directory cannot be written."""


class TrainingError(ThorPolicyError):
    """An adapter cannot be trained from this, or the file is not what was trained."""


class JournalError(ThorPolicyError):
    """The journal cannot be opened, written or trusted."""


class DiskFull(JournalError):
    """The disk is full, and the setting `on_full` is halt."""

    exit_code = 5


class Stalled(ThorPolicyError):
    """A thread of the daemon got nothing done for too long, or the journal did not drain; it ends."""

    exit_code = 6


class Unreachable(ThorPolicyError):
    """No daemon answered at the endpoint within the timeout."""

    exit_code = 3


class RequestError(ThorPolicyError):
    """A request is refused.

    `code` is one of `ERROR_CODES`; `retry_after_ms` (milliseconds) goes with `busy`. `reason_code` says more
    of a request about an approval, in the words of OpenID's profile.
    """

    exit_code = 4

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retry_after_ms: int | None = None,
        reason_code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.reason_code = reason_code


def shutting_down() -> RequestError:
    """The refusal of whatever comes, or still waits, while the daemon stops."""
    return RequestError("shutting_down", "the daemon is stopping")


def decision_failed() -> RequestError:
    """The refusal of a request whose decision met an unexpected error."""
    return RequestError("internal", "the decision failed; the daemon's log says why")
