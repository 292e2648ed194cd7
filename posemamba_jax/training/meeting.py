"""Processes meet at an address before JAX joins them, to see that all are there and agree.

The first one listens, the others connect and say how many they expect to be and which they are.
When all have come, or something is wrong, everyone is told, and the port is free again for JAX.
"""

import socket
import time

from posemamba_jax.errors import UserError

_GREETING = "posemamba"
_RETRY_SECONDS = 0.2


def meet(coordinator: str, num_processes: int, process_id: int, *, timeout: float) -> None:
    """Returns once every process has come to the coordinator's address.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: of the run.
        process_id: this one, from 0.
        timeout: seconds to wait for the others.

    Raises:
        UserError: the address cannot be used, a process does not come in time, two have the same
            number, or they were told different counts. The text says which.
    """
    host, port = _split(coordinator)
    deadline = time.monotonic() + timeout
    if process_id == 0:
        _receive(coordinator, port, num_processes, deadline, timeout)
    else:
        _visit(coordinator, host, port, num_processes, process_id, deadline, timeout)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"distributed.coordinator: {address!r}, expected HOST:PORT of process 0, such as "
            "10.0.0.1:1234"
        )
    return host.strip("[]"), int(port)


def _receive(address: str, port: int, count: int, deadline: float, timeout: float) -> None:
    """The first process's part."""
    try:
        listener = (
            socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
            if socket.has_dualstack_ipv6()
            else socket.create_server(("", port))
        )
    except OSError as error:
        raise UserError(
            f"distributed.coordinator: {address}: port {port} cannot be opened here "
            f"({error.strerror}); take another, the same for all processes"
        ) from error
    guests: dict[int, socket.socket] = {}
    try:
        with listener:
            while len(guests) < count - 1:
                left = deadline - time.monotonic()
                missing = sorted({*range(1, count)} - {*guests})
                absent = (
                    f"distributed: process {', '.join(map(str, missing))} of {count} did not come "
                    f"to {address} within {timeout:g} s; was it started with the same address?"
                )
                if left <= 0:
                    raise UserError(absent)
                listener.settimeout(left)
                try:
                    guest, _ = listener.accept()
                except TimeoutError:
                    raise UserError(absent) from None
                _admit(guest, guests, count, min(left, 10.0))
    except UserError as error:
        _tell(guests, str(error))
        raise
    _tell(guests, "")


def _admit(
    guest: socket.socket, guests: dict[int, socket.socket], count: int, timeout: float
) -> None:
    """Takes a connection in; one that speaks another language is dropped."""
    guest.settimeout(timeout)
    try:
        words = guest.makefile(encoding="utf-8").readline(100).split()
    except (OSError, ValueError):
        words = []
    if len(words) != 3 or words[0] != _GREETING or not all(w.isdigit() for w in words[1:]):
        guest.close()
        return
    their_count, number = int(words[1]), int(words[2])
    problem = ""
    if their_count != count:
        problem = (
            f"distributed.num_processes: process {number} was told {their_count}, process 0 {count}"
        )
    elif number in guests or not 0 < number < count:
        problem = f"distributed.process_id: {number} was given to two processes"
    if problem:
        _tell({number: guest}, problem)
        raise UserError(problem)
    guests[number] = guest


def _tell(guests: dict[int, socket.socket], problem: str) -> None:
    for guest in guests.values():
        with guest:
            try:
                guest.sendall(f"{_GREETING} {problem}\n".encode())
            except OSError:
                continue  # It will find out by itself.


def _visit(
    address: str, host: str, port: int, count: int, number: int, deadline: float, timeout: float
) -> None:
    """The part of the others."""
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.1)
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(f"{_GREETING} {count} {number}\n".encode())
                # Process 0 has its own clock and is the one to say who is missing.
                connection.settimeout(left + 5)
                answer = connection.makefile(encoding="utf-8").readline(1000)
        except socket.gaierror as error:
            raise UserError(
                f"distributed.coordinator: {address}: no such host ({error.strerror})"
            ) from error
        except (OSError, ValueError) as error:
            answer, reason = "", str(error)
        else:
            reason = "it answered in another language"
        if answer.startswith(_GREETING + " "):
            problem = answer.removeprefix(_GREETING).strip()
            if problem:
                raise UserError(problem)
            return
        if time.monotonic() >= deadline:
            raise UserError(
                f"distributed: process {number} could not reach process 0 at {address} within "
                f"{timeout:g} s ({reason}); is it running there, and the address right?"
            )
        time.sleep(_RETRY_SECONDS)
