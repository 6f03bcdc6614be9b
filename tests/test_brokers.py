"""The toolkit under tests/brokers keeps its promises; every other test leans on it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import (
    KINDS,
    External,
    Kafka,
    NotOurs,
    RabbitMQ,
    Redis,
    Server,
    ServerFailed,
    ServerMissing,
    find,
    guard,
    server,
)
from tests.brokers.guard import born, family, frozen, send
from tests.brokers.kafka.distribution import Distribution
from tests.brokers.process import Process
from tests.conftest import OwnServer

ROOT = Path(__file__).parent.parent


def eventually(condition: Callable[[], bool], timeout: float = 15.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


# Something durable, written and read by each kind of client.


def _sql(url: str, *statements: str) -> list[tuple[Any, ...]]:
    from sqlalchemy import NullPool, create_engine, text

    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            result = connection.execute(text(statement))
            rows = [tuple(row) for row in result] if result.returns_rows else []
    return rows


def _write_sql(one: Server) -> None:
    _sql(one.url, "CREATE TABLE kept (word varchar(20))", "INSERT INTO kept VALUES ('here')")


def _read_sql(one: Server) -> str:
    return str(_sql(one.url, "SELECT word FROM kept")[0][0])


def _write_redis(one: Server) -> None:
    assert isinstance(one, Redis)
    assert one.command("SET kept here") == "+OK"


def _read_redis(one: Server) -> str:
    assert isinstance(one, Redis)
    assert one.command("EXISTS kept") == ":1"
    return {":4": "here"}[one.command("STRLEN kept")]


def _write_rabbitmq(one: Server) -> None:
    import pika

    with pika.BlockingConnection(pika.URLParameters(one.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()
        channel.basic_publish("", "kept", b"here", mandatory=True)


def _read_rabbitmq(one: Server) -> str:
    import pika

    with pika.BlockingConnection(pika.URLParameters(one.url)) as connection:
        channel = connection.channel()
        bodies: list[bytes | None] = []

        def arrived() -> bool:
            bodies.append(channel.basic_get("kept", auto_ack=True)[2])
            return bodies[-1] is not None

        assert eventually(arrived)  # a quorum queue elects its leader first
        return (bodies[-1] or b"").decode()


def _write_kafka(one: Server) -> None:
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    assert isinstance(one, Kafka)
    admin = AdminClient({"bootstrap.servers": one.bootstrap})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(60)
    producer = Producer({"bootstrap.servers": one.bootstrap, "acks": "all"})
    producer.produce("kept", b"here")
    assert producer.flush(60) == 0


def _read_kafka(one: Server) -> str:
    from confluent_kafka import Consumer

    assert isinstance(one, Kafka)
    consumer = Consumer(
        {"bootstrap.servers": one.bootstrap, "group.id": "g", "auto.offset.reset": "earliest"}
    )
    try:
        consumer.subscribe(["kept"])
        bodies: list[bytes] = []

        def arrived() -> bool:
            # A broker that has just started has to make its topic of offsets first, and says so.
            message = consumer.poll(1.0)
            if message is None or message.error() is not None:
                return False
            bodies.append(bytes(message.value() or b""))
            return True

        assert eventually(arrived, 120.0)
        return bodies[0].decode()
    finally:
        consumer.close()


WRITE: dict[str, Callable[[Server], None]] = {
    "kafka": _write_kafka,
    "rabbitmq": _write_rabbitmq,
    "redis": _write_redis,
    "postgresql": _write_sql,
    "mariadb": _write_sql,
}
READ: dict[str, Callable[[Server], str]] = {
    "kafka": _read_kafka,
    "rabbitmq": _read_rabbitmq,
    "redis": _read_redis,
    "postgresql": _read_sql,
    "mariadb": _read_sql,
}


@pytest.mark.chaos
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_server_comes_back_on_its_port_with_its_data(
    kind: str, own_server: OwnServer
) -> None:
    one = own_server(kind)
    url = one.url
    WRITE[kind](one)
    members = {member for pid in one.pids for member in family(pid, born(pid))}
    assert members >= set(one.pids)

    one.kill()
    assert not one.running
    assert not [pid for pid in members if lives(pid)]

    one.restart()
    assert one.url == url
    assert READ[kind](one) == "here"

    folder = one.folder
    members = {member for pid in one.pids for member in family(pid, born(pid))}
    one.stop()
    assert not folder.exists()
    assert not [pid for pid in members if lives(pid)]


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["redis", "postgresql"])
def test_a_paused_server_keeps_connections_and_answers_only_after_resume(
    kind: str, own_server: OwnServer
) -> None:
    one = own_server(kind)
    one.pause()
    with socket.create_connection(("127.0.0.1", one.port()), timeout=5) as connection:
        # Something that each of them answers at once: PING, or a request for encryption.
        connection.sendall(b"PING\r\n" if kind == "redis" else b"\0\0\0\x08\x04\xd2\x16\x2f")
        assert not select.select([connection], [], [], 0.3)[0]
        one.resume()
        assert select.select([connection], [], [], 10)[0]
    assert one.running
    assert one.ready()


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["redis", "postgresql", "rabbitmq"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_servers_die_with_the_test_run_that_started_them(
    kind: str, number: signal.Signals, own_server: OwnServer
) -> None:
    own_server("redis").stop()  # skips here rather than in the child
    _skip_unless_present(kind)
    script = (
        "import signal, sys; from tests.brokers import server\n"
        f"one = server({kind!r}).start()\n"
        "print(one.folder, *one.pids, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        folder, *pids = run.stdout.readline().split()
        members = {member for pid in pids for member in family(int(pid), born(int(pid)))}
        assert members >= {int(pid) for pid in pids}
        run.send_signal(number)
        run.wait(10)
    assert eventually(lambda: not [pid for pid in members if lives(pid)])
    assert eventually(lambda: not Path(folder).exists())


def test_a_process_that_was_given_the_number_of_a_dead_one_is_no_family_of_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        since = born(stranger.pid)
        assert family(stranger.pid, since) == {stranger.pid}
        assert family(stranger.pid, since - 1) == set()
        stranger.kill()
    assert born(stranger.pid) == 0


def test_nothing_of_a_paused_process_runs_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal is there for a process when it has its turn: here a while after it was sent."""

    def late(pids: set[int], number: int) -> None:
        threading.Timer(0.2, send, (pids, number)).start()

    burning = [sys.executable, "-c", "while True: pass"]
    process = Process(burning, folder=tmp_path, log=tmp_path / "log")
    with monkeypatch.context() as patched:
        patched.setattr(guard, "send", late)
        process.pause()
    assert frozen({process.pid})
    process.resume()
    assert eventually(lambda: not frozen({process.pid}))
    process.kill()


def test_a_server_that_ends_by_itself_is_said_with_its_log(own_server: OwnServer) -> None:
    one = own_server("redis")
    one.check_alive()
    os.kill(one.pids[0], signal.SIGTERM)
    assert eventually(lambda: not one.running)
    with pytest.raises(ServerFailed, match=r"ended by itself \(status 0\)(?s:.*)bye bye"):
        one.check_alive()


def test_a_test_that_fails_shows_what_its_servers_said_last(pytester: pytest.Pytester) -> None:
    _skip_unless_present("redis")
    pytester.makepyfile(
        """
        import pytest
        from tests.brokers import server

        @pytest.fixture
        def redis():
            with server("redis") as found:
                yield found

        def test_a_failure(redis):
            assert not redis.running
        """
    )
    shown = pytester.runpytest_inprocess("-p", "tests.server_logs")
    shown.assert_outcomes(failed=1)
    shown.stdout.fnmatch_lines(["*end of the log of redis*", "*Ready to accept connections*"])


def test_a_command_waits_until_rabbitmq_has_booted(own_server: OwnServer) -> None:
    one = own_server("rabbitmq")
    assert isinstance(one, RabbitMQ)
    one.kill()
    one.launch()
    assert eventually(lambda: accepts(one.port("distribution")))
    assert "guest" in one.control("list_users")


def test_a_command_that_rabbitmq_refuses_is_said_with_its_reason(own_server: OwnServer) -> None:
    one = own_server("rabbitmq")
    assert isinstance(one, RabbitMQ)
    with pytest.raises(ServerFailed, match=r"refused 'add_user guest x' .*exists"):
        one.control("add_user", "guest", "x")


def _skip_unless_present(kind: str) -> None:
    try:
        server(kind).check()
    except ServerMissing as error:
        pytest.skip(str(error))


def test_two_servers_of_a_kind_do_not_meet(own_server: OwnServer) -> None:
    one, two = own_server("redis"), own_server("redis")
    assert one.url != two.url
    WRITE["redis"](one)
    assert isinstance(two, Redis)
    assert two.command("EXISTS kept") == ":0"


@pytest.mark.chaos
def test_temporary_tables_of_mariadb_are_where_no_other_server_finds_them(
    own_server: OwnServer,
) -> None:
    one = own_server("mariadb")
    assert _sql(one.url, "SELECT @@tmpdir")[0][0] == str(one.folder / "tmp")


def test_a_server_that_cannot_start_says_why(own_server: OwnServer) -> None:
    with pytest.raises(ServerFailed, match="no-such-option"):
        own_server("redis", {"no-such-option": "1"})


def test_a_missing_server_names_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ServerMissing, match=r"apt-get install .* redis-server") as caught:
        server("redis").start()
    assert "RMQ_TEST_REDIS_URL" in str(caught.value)


def test_a_server_named_in_the_environment_wins_and_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RMQ_TEST_REDIS_URL", "redis://elsewhere:1/2")
    found = find("redis")
    assert isinstance(found, External)
    assert found.start().url == "redis://elsewhere:1/2"
    with pytest.raises(NotOurs, match="RMQ_TEST_REDIS_URL"):
        found.kill()
    found.stop()


def test_up_prints_where_the_servers_are_and_removes_them_on_sigterm() -> None:
    _skip_unless_present("redis")
    command = [sys.executable, "-m", "tests.brokers", "up", "redis", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        url = json.loads(run.stdout.readline())["RMQ_TEST_REDIS_URL"]
        port = int(url.split(":")[2].split("/")[0])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        run.terminate()
        assert run.wait(10) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


# The fixtures that keep tests apart.


def test_each_store_url_is_an_empty_database(store_url: str) -> None:
    _sql(store_url, "CREATE TABLE only_here (id int)")
    assert _sql(store_url, "SELECT count(*) FROM only_here") == [(0,)]


def test_redis_databases_are_empty_whatever_an_earlier_test_left(redis_server: Server) -> None:
    if not isinstance(redis_server, Redis):
        pytest.skip("an external server is used as it is")
    number = redis_server.fresh_database().rpartition("/")[2]
    assert redis_server.command(f"SELECT {number}", "SET left over") == "+OK"
    assert redis_server.command(f"SELECT {number}", "DBSIZE") == ":1"
    numbers = [redis_server.fresh_database().rpartition("/")[2] for _ in range(511)]
    assert numbers[-1] == number
    assert redis_server.command(f"SELECT {number}", "DBSIZE") == ":0"


def test_unique_names_fit_topics_groups_and_databases(unique: str) -> None:
    assert re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", unique)


@pytest.mark.timeout(30)
def test_what_kafka_needs_may_need_something_else_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine where nothing is fetched yet the first start needs the jars in mid-format."""
    monkeypatch.setenv("RMQ_TEST_CACHE", str(tmp_path))
    kafka = Distribution()

    def make(place: Path) -> None:
        kafka.once(kafka.folder / "lib", Path.mkdir)
        place.mkdir()

    kafka.once(kafka.formatted, make)
    assert {path.name for path in kafka.folder.iterdir() if path.is_dir()} == {"lib", "formatted"}
