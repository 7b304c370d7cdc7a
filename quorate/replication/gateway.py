"""What a submission must pass before it enters the log. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from quorate.base.frames import Submit
from quorate.base.limits import BATCH_BYTES_MAX, BATCH_COMMANDS_MAX
from quorate.errors import BadCommandError, LimitExceededError
from quorate.replication.refusals import Refusals, pass_through
from quorate.replication.registry import Registry
from quorate.replication.runs import decode_checked


class Prepared(msgspec.Struct, frozen=True):
    """A checked submission. *runs*: its decoded commands, run by run, which ``apply`` uses again
    on the node that prepared it, if the registry's *generation* is still the same. *size_bytes*: of
    the undecoded commands."""

    submit: Submit
    runs: tuple[Sequence[Any], ...]
    command_count: int
    size_bytes: int
    generation: int = 0


def prepare(submit: Submit, registry: Registry) -> Prepared:
    """Check a submission, and decode it.

    Raises:
        UnknownMachineError, BadCommandError, LimitExceededError, OverloadedError: nothing was done.
    """
    if len(submit.runs) > BATCH_COMMANDS_MAX:
        raise LimitExceededError(
            f"a batch of {len(submit.runs)} runs is over the limit of {BATCH_COMMANDS_MAX}"
        )
    size_bytes = sum(len(run.items) + len(run.machine) for run in submit.runs)
    if size_bytes > BATCH_BYTES_MAX:
        raise LimitExceededError(
            f"a batch of {size_bytes} bytes of commands is over the limit of {BATCH_BYTES_MAX}"
        )
    if submit.session < 0 or (submit.session and submit.sequence < 1):
        raise BadCommandError("sessions and the sequence numbers in them are positive")
    runs = tuple(decode_checked(registry.slot(run.machine), run) for run in submit.runs)
    command_count = sum(map(len, runs))
    if command_count > BATCH_COMMANDS_MAX:
        raise LimitExceededError(
            f"a batch of {command_count} commands is over the limit of {BATCH_COMMANDS_MAX}"
        )
    return Prepared(submit, runs, command_count, size_bytes, registry.generation)


def frees_space(prepared: Prepared, registry: Registry, refusals: Refusals) -> bool:
    """Whether all commands only free space, or keep sessions, as their machines say."""
    for run, commands in zip(prepared.submit.runs, prepared.runs, strict=True):
        frees = registry.machine(run.machine).frees_space
        try:
            if not all(frees(command) for command in commands):
                return False
        except Exception as error:  # noqa: BLE001  what a machine may raise is anything
            pass_through(error)
            refusals.log(run.machine, "frees_space", error)
            return False
    return True
