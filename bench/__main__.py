"""``python -m bench compare | durability | failover | recover | reads
| coordination | crdt | tasks``: tables, and JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import processes, report
from bench.processes import BenchError
from bench.workloads import BY_NAME, WORKLOADS


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
        made.add_argument("--directory", type=Path, help="where the nodes' data go for the run")
        return made

    compare = command("compare", "the same workloads against every system, in turns")
    compare.add_argument("--peers", type=_names, default=["etcd", "pysyncobj"])
    compare.add_argument("--without-quorate", action="store_true", help="measure the peers alone")
    compare.add_argument("--workloads", type=_names, default=[w.name for w in WORKLOADS])
    compare.add_argument("--rounds", type=int, default=3)
    compare.add_argument("--seconds", type=float, default=4.0, help="of each run, after warm-up")

    durability = command("durability", "SIGKILL nodes under writes; count what was lost or doubled")
    durability.add_argument("--kills", type=int, default=30)
    durability.add_argument("--seed", type=int, default=1, help="chooses the victims and pauses")

    failover = command("failover", "SIGKILL of the leader to the next acknowledged write")
    failover.add_argument("--kills", type=int, default=20)
    failover.add_argument("--peers", type=_names, default=["etcd"])

    recover = command("recover", "restart, memory, speed and snapshots at many keys")
    recover.add_argument("--keys", type=int, default=1_000_000)

    reads = command("reads", "reads through three nodes beside reads through the leader alone")
    reads.add_argument("--rounds", type=int, default=3)
    reads.add_argument("--seconds", type=float, default=3.0, help="of each run, after warm-up")

    coordinate = command("coordination", "locks, leases, watches and reads, beside etcd's locks")
    coordinate.add_argument("--peers", type=_names, default=["etcd"])
    coordinate.add_argument("--rounds", type=int, default=3)
    coordinate.add_argument("--seconds", type=float, default=3.0, help="of each run")

    converging = command("crdt", "data that converges: adds, healing, syncing, what is left")
    converging.add_argument("--elements", type=int, default=1_000_000)
    converging.add_argument("--pairs", type=int, default=1_000_000, help="of an add and a removal")

    queued = command("tasks", "queues of tasks, and a worker process that runs them")
    queued.add_argument("--peers", type=_names, default=["rabbitmq", "dramatiq", "celery"])
    queued.add_argument("--rounds", type=int, default=3)
    queued.add_argument("--seconds", type=float, default=3.0, help="of each run, after warm-up")
    return parser


def run(options: argparse.Namespace) -> dict[str, object]:
    """Carry out a parsed command; returns its report."""
    if options.command == "compare":
        from bench.compare import compare

        unknown = [name for name in options.workloads if name not in BY_NAME]
        if unknown:
            raise BenchError(f"unknown workload {unknown[0]!r}; there are {', '.join(BY_NAME)}")
        return compare(
            [*([] if options.without_quorate else ["quorate"]), *options.peers],
            workloads=[BY_NAME[name] for name in options.workloads],
            rounds=options.rounds,
            seconds=options.seconds,
            parent=options.directory,
        )
    if options.command == "durability":
        from bench.durability import durability

        return durability(kills=options.kills, seed=options.seed, parent=options.directory)
    if options.command == "failover":
        from bench.failover import failover

        return failover(kills=options.kills, peers=options.peers, parent=options.directory)
    if options.command == "coordination":
        from bench.coordination import coordination

        return coordination(
            peers=options.peers,
            rounds=options.rounds,
            seconds=options.seconds,
            parent=options.directory,
        )
    if options.command == "reads":
        from bench.reads import reads

        return reads(seconds=options.seconds, rounds=options.rounds, parent=options.directory)
    if options.command == "tasks":
        from bench.tasks import tasks

        return tasks(
            peers=options.peers,
            rounds=options.rounds,
            seconds=options.seconds,
            parent=options.directory,
        )
    if options.command == "crdt":
        from bench.crdt import crdt

        return crdt(elements=options.elements, pairs=options.pairs, parent=options.directory)
    from bench.recover import recover

    return recover(keys=options.keys, parent=options.directory)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: measured, whatever the figures say; 1: it could not be, or data was lost or
    doubled; 2: a wrong call; 130: interrupted."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no such directory")  # exits with status 2
    try:
        with processes.all_ended():
            content = run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; every process is ended", file=sys.stderr)
        return 130
    report.write_json(options.json, content)
    return 0 if content.get("passed", True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
