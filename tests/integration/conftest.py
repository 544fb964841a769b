"""One funded pair that the tests of order entry share, with an empty book before each of them."""

from collections.abc import Iterator

import grpc
import pytest

from tests.integration.entry_clients import ALICE, BOB, CAROL, Client, Running, running


@pytest.fixture(scope="session")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("run")) as both:
        yield both


@pytest.fixture
def channel(shared: Running) -> Iterator[grpc.Channel]:
    """Give the channel of a pair with an empty book."""
    yield shared[1]
    for account in (ALICE, BOB, CAROL):
        Client(shared[1], account).cancel_all()


@pytest.fixture
def alice(channel: grpc.Channel) -> Client:
    return Client(channel, ALICE)


@pytest.fixture
def bob(channel: grpc.Channel) -> Client:
    return Client(channel, BOB)
